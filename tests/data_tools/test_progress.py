from megatron_kis.common.progress import BarProgress, LineProgress, Progress


def test_every_kind_of_progress_passes_the_items_through():
    for progress in (Progress(), LineProgress(lambda line: None), BarProgress()):
        assert list(progress.track(iter("abc"), description="letters")) == ["a", "b", "c"]
        assert list(progress.track("abc", description="letters", total=3)) == ["a", "b", "c"]


def test_plain_lines_come_at_most_every_ten_seconds():
    lines, now = [], [0.0]

    def seconds():
        now[0] += 2.0
        return now[0]

    progress = LineProgress(lines.append, clock=seconds)
    list(progress.track(range(20), description="documents", total=20))
    assert lines[0] == "documents: 5 of 20"
    assert 2 <= len(lines) <= 4


def test_the_meter_tells_megabytes_documents_and_speed():
    lines, now = [], [0.0]
    progress = LineProgress(lines.append, clock=lambda: now[0])
    with progress.meter("corpus", 80_000_000) as meter:
        for _ in range(4):
            now[0] += 6.0
            meter(20_000_000, 12_000_000, 3_000)
    assert lines[0] == "corpus: 20 of 80 MB, 3,000 documents, 1.0 MB of text per second"
    assert len(lines) == 2
    for silent in (Progress(), BarProgress()):
        with silent.meter("corpus", 10) as meter:
            meter(5, 5, 1)
