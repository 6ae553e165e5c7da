from data_tools.progress import BarProgress, LineProgress, Progress


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
