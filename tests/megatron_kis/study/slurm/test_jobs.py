"""Runs in jobs: every run exactly once, small ones packed, large ones on the nodes that they need."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.config.slurm import ClusterConfig
from megatron_kis.executor.slurm.jobs import arrays_of, deal, jobs_of, resolved


def cluster(**content: Any) -> ClusterConfig:
    return parse_config(ClusterConfig, content, source="study")


@pytest.fixture
def run(tiny_run: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    return lambda name, **parallel: tiny_run(name=name, parallel=parallel)


def test_runs_go_by_their_ranks_into_arrays_of_their_shape(run: Callable[..., RunConfig]) -> None:
    runs = [
        run("a"),
        run("b", tensor=2),
        run("c", tensor=4, replicas=4),
        run("d", tensor=8, pipeline=2),
        run("e", tensor=2, replicas=2),
        run("f", replicas=4),
    ]
    section = cluster(gpus_per_node=8, small={"gpus": 2, "cells_per_task": 1}, large={"at_once": 3})
    jobs = {job.label: job for job in jobs_of(runs, section)}
    assert jobs["small"].tasks == (("a",), ("b",))
    assert jobs["small"].gpus == 2
    assert jobs["large-2x8"].tasks == (("c",), ("d",))
    assert (jobs["large-2x8"].nodes, jobs["large-2x8"].ranks_per_node, jobs["large-2x8"].gpus) == (2, 8, 8)
    assert jobs["large-1x4"].tasks == (("e",), ("f",))
    assert jobs["large-1x4"].gpus == 4  # and not the whole node
    assert jobs["large-1x4"].at_once == 3


def test_ranks_that_do_not_fill_their_nodes_evenly_are_refused(run: Callable[..., RunConfig]) -> None:
    with pytest.raises(InputError, match=r"9 ranks cannot be spread evenly over 2 nodes of 8; .* multiple of 8"):
        jobs_of([run("a", replicas=9)], cluster(gpus_per_node=8))


def test_without_gpus_a_rank_is_a_node_if_nothing_else_is_said(run: Callable[..., RunConfig]) -> None:
    (job,) = jobs_of([run("a", tensor=2)], cluster())
    assert (job.nodes, job.ranks_per_node, job.gpus) == (2, 1, 0)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 8), (9, 8), (10_000, 8), (7, 1)])
def test_dealing_gives_every_run_to_one_task_and_balances_them(count: int, size: int) -> None:
    names = [str(number) for number in range(count)]
    tasks = deal(names, size)
    assert sorted(itertools.chain(*tasks), key=int) == names
    assert max(map(len, tasks)) <= size
    assert max(map(len, tasks)) - min(map(len, tasks)) <= 1
    assert [task[0] for task in tasks] == names[: len(tasks)]  # the most expensive ones lie in different tasks


def test_ten_thousand_runs_are_a_few_arrays_that_cover_their_tasks(run: Callable[..., RunConfig]) -> None:
    base = run("0")
    runs = [base.model_copy(update={"name": str(number)}) for number in range(10_000)]
    (job,) = jobs_of(runs, cluster(small={"at_once": 100}))
    arrays = arrays_of(job, 1001)
    assert [(array.first, array.count) for array in arrays] == [(0, 1001), (1001, 249)]
    assert [array.option for array in arrays] == ["0-1000%50", "0-248%50"]  # 100 at once in all
    assert arrays[-1].first + arrays[-1].count == len(job.tasks) == 1250


def test_a_job_takes_the_clusters_settings_where_it_has_none() -> None:
    section = cluster(
        account="lab", partition="gpu", options=["--exclusive"], data={"partition": "cpu", "options": ["--nice=5"]}
    )
    settings = resolved(section, section.data)
    assert (settings.account, settings.partition, settings.options) == ("lab", "cpu", ("--exclusive", "--nice=5"))
