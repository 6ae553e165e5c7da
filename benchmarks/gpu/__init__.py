"""The first hour on a GPU: what must work, what it holds in memory, how fast it is.

    python -m benchmarks.gpu [PART ...] [--minutes 8] [--output DIR]
    python -m benchmarks.gpu --table DIR/results.jsonl        the rows as Markdown, for docs/PERFORMANCE.md

Parts, in the order of their worth:

* ``checks``: real ``kis train`` of small models with each implementation of the layers and each precision: resuming
  after SIGTERM and SIGKILL, probes of the checkpoint on the GPU and on the CPU, validation and logits next to the
  exported model in ``transformers``, determinism; with two GPUs or more each kind of layout next to one GPU.
* ``memory``: the most that each part of a run holds, next to ``kis plan``.
* ``speed``: tokens per second and MFU, next to a plain PyTorch model under ``torch.compile``.
* ``probes``: questions per second, next to LM-Pub-Quiz and lm-eval.
* ``side-by-side``: small runs that share one GPU, in runs per hour.

Parts share the minutes; unused time goes to the next part. Every measurement is a separate process, with its messages
in ``DIR/logs``. A row is appended to ``DIR/results.jsonl`` as soon as it is there, so that nothing is lost if the
benchmark is killed; so are the rows of later calls. What fails, does not fit or is not reached has a row that says so.
Exit status: 1 if a row says ``failed``.

Prepare a machine, which needs no network afterwards:

1. Python 3.11 and a C compiler (Triton needs it), and a driver for the CUDA version of PyTorch.
2. ``pip install torch`` (the CUDA build), then ``pip install -e '.[gpu,export,compare]' -c .ci/constraints.txt``.
3. ``gpu`` is Transformer Engine, ``compare`` the two other tools for probes; without them their rows are skipped.
4. Try it: ``python -m benchmarks.gpu --device cpu --presets cpu-32 --lengths 64 --vocabulary 400 --seconds 0.2``.
"""
