"""Several threads and processes: each optimizer is used by one at a time, but many are used at once."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import reimpl.optim
from helpers import OPTIONS, assert_same, pair, parameters, snapshot, take_steps
from reimpl.optim.engines import kernel

ENGINES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.fixture(params=ENGINES)
def engine(request):
    """The options that choose an engine, each in turn."""
    return ENGINES[request.param]


def at_once(*actions):
    """Run each action in a thread, all from the same moment on, and return their results."""
    start, results, errors = threading.Barrier(len(actions)), {}, []

    def run(index, action):
        try:
            start.wait(60)
            results[index] = action()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(actions))]


def run_python(text, *arguments, timeout=200):
    """Run a program with the test's modules at hand, in which a warning of a missing kernel is an error."""
    folders = [os.path.dirname(os.path.dirname(__file__)), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    found = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(text), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


# Threads.


@pytest.mark.parametrize("name", OPTIONS)
def test_optimizers_in_threads(name, engine):
    """Each takes its steps as it would alone: nothing is shared but what never changes."""

    def run(count):
        return take_steps(pair(name)[0](parameters(), **OPTIONS[name], **engine), count)

    counts = (20, 21, 22)
    alone = [run(count) for count in counts]
    together = at_once(*(lambda count=count: run(count) for count in counts))
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_threads_that_need_the_same_kernel(monkeypatch, tmp_path):
    """One compiles, the others wait."""
    compiled = []
    compile_for_processor = kernel.compile_for_processor

    def counting(source):
        compiled.append(source)
        return compile_for_processor(source)

    monkeypatch.setattr(kernel, "KERNELS", {})
    monkeypatch.setattr(kernel, "compile_for_processor", counting)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def run():
        return take_steps(reimpl.optim.SGD(parameters(), fused=True), 2)

    results = at_once(run, run, run)
    assert len(compiled) == 1
    for result in results:
        assert_same(result, results[0])


def test_threads_that_need_different_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "KERNELS", {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def run(name):
        return take_steps(pair(name)[0](parameters(), fused=True), 2)

    results = at_once(*(lambda name=name: run(name) for name in ("SGD", "Rprop")))
    for result, name in zip(results, ("SGD", "Rprop"), strict=True):
        assert_same(result, run(name))


def test_a_checkpoint_is_written_by_a_thread_between_steps():
    """What a copy holds does not change when the next step runs, while a thread writes it."""
    optimizer = take_steps(reimpl.optim.Adam(parameters()), 3)
    saved, expected = pickle.dumps(optimizer.state_dict()), snapshot(optimizer)
    copies = []
    at_once(lambda: copies.append(pickle.loads(saved)), lambda: take_steps(optimizer, 5, first=3))
    resumed = reimpl.optim.Adam([expected[f"param[{i}]"].clone().requires_grad_() for i in range(3)])
    resumed.load_state_dict(copies[0])
    assert_same(take_steps(resumed, 5, first=3), optimizer)


# Processes.


WORKERS = """
    import sys
    import torch
    import torch.multiprocessing
    from helpers import *

    def work(optimizer, queue):
        torch.set_num_threads(1)
        take_steps(optimizer, 3, first=2)
        queue.put({key: value.tolist() for key, value in snapshot(optimizer).items()})

    def run(context, cls, engine):
        optimizer = take_steps(cls(parameters(), **OPTIONS["Adam"], **engine), 2)
        queue = context.Queue()
        process = context.Process(target=work, args=(optimizer, queue))
        process.start()
        found = queue.get(timeout=100)
        process.join(100)
        assert process.exitcode == 0
        expected = take_steps(cls(parameters(), **OPTIONS["Adam"], **engine), 5)
        assert found == {key: value.tolist() for key, value in snapshot(expected).items()}
        here = {key: value.tolist() for key, value in snapshot(optimizer).items()}
        # What is pickled for `spawn` is moved to shared memory; a fork has a copy.
        shared = [key for key, value in here.items() if value == found[key]]
        assert shared == (list(here) if sys.argv[1] == "spawn" else [])
        return found

    if __name__ == "__main__":
        torch.set_num_threads(1)
        context = torch.multiprocessing.get_context(sys.argv[1])
        ours, theirs = pair("Adam")
        assert run(context, ours, {"foreach": False}) == run(context, theirs, {"foreach": False})
        run(context, ours, {"fused": True})
"""
"""A worker gets an optimizer with its state, and goes on from there."""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method, tmp_path):
    """With the bits that the parent would have."""
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not there")
    file = tmp_path / "workers.py"  # from which `spawn` imports the function
    file.write_text(textwrap.dedent(WORKERS))
    run_python("import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))", str(file), method)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_hogwild():
    """Forked workers that share parameters: in turn they have torch's bits, and at once they do no harm."""
    run_python(
        """
        import torch
        import torch.multiprocessing
        from helpers import *

        torch.set_num_threads(1)
        context = torch.multiprocessing.get_context("fork")

        def work(params, optimizer):
            for _ in range(50):
                for param in params:  # down a bowl
                    param.grad = param.detach().clone()
                optimizer.step()

        def run(cls, engine):
            params = [param.detach().share_memory_().requires_grad_() for param in parameters()]
            optimizer = cls(params, lr=0.1, **engine)
            if hasattr(optimizer, "share_memory"):
                optimizer.share_memory()
            heights = []

            def workers(count):
                running = [context.Process(target=work, args=(params, optimizer)) for _ in range(count)]
                for process in running:
                    process.start()
                for process in running:
                    process.join(60)
                    assert process.exitcode == 0
                heights.append(sum(param.detach().square().sum().item() for param in params))

            workers(1)
            workers(1)
            in_turn = snapshot(optimizer, params)
            workers(2)
            assert heights == sorted(heights, reverse=True), heights
            return in_turn

        for name in ("SGD", "Adagrad"):
            ours, theirs = pair(name)
            assert_same(run(ours, {"foreach": False}), run(theirs, {"foreach": False}))
            run(ours, {"foreach": True})
            run(ours, {"fused": True})
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_a_fork_in_the_middle_of_compiling():
    """A child does not wait for a lock that a thread of its parent held: no step of the child hangs."""
    run_python(
        """
        import os, signal, threading, time
        import torch
        from helpers import *
        from reimpl.optim.engines import kernel

        torch.set_num_threads(1)
        inside = threading.Event()
        original = kernel.compile_for_processor

        def slow(source):
            inside.set()
            time.sleep(2)
            return original(source)

        kernel.compile_for_processor = slow
        thread = threading.Thread(target=lambda: take_steps(pair("SGD")[0](parameters(), fused=True), 1))
        thread.start()
        assert inside.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(40)
            kernel.compile_for_processor = original
            take_steps(pair("Adam")[0](parameters(), fused=True), 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        thread.join()
        assert os.waitstatus_to_exitcode(status) == 0, status
        """
    )
