"""The process that compares formulas: from threads, over time, and when it dies."""

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil

from profit_sft.evaluation import limited
from profit_sft.evaluation.grading import MathJudge


def test_it_works_from_several_threads(judge):
    found = {}

    def compare(number):
        found[number] = judge.equal(f"\\boxed{{{number}}}", [f"\\boxed{{\\frac{{{2 * number}}}{{2}}}}"])

    threads = [threading.Thread(target=compare, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def test_any_reading_is_enough_and_none_is_not(judge):
    assert judge.equal("$2$", ["$3$", "$2$"]) is True
    assert judge.equal("$2$", []) is False
    assert judge.equal("$2$", ["no formula"]) is False


ENDLESS = r"$\sum_{k=1}^{99999999}\frac{\sin k}{k^2+1}$"


def test_past_the_limit_of_processor_time_it_gives_up_and_goes_on():
    with closing(MathJudge(cpu_seconds=1)) as judge:
        assert judge.equal("$2$", [ENDLESS]) is None
        assert judge.process is None
        assert judge.equal("$2$", ["$2$"]) is True


def test_the_limit_is_that_of_one_comparison():
    with closing(MathJudge(cpu_seconds=3)) as judge:
        judge.equal("$1$", ["$1$"])
        process = judge.process
        taken = psutil.Process(process.pid).cpu_times
        end = taken().user + 6  # twice the limit, by comparisons of a twentieth of a second
        while judge.process is process and taken().user < end:
            judge.equal("$2$", [r"$\int_0^1 x e^x dx$"])
        assert judge.process is process


def test_a_process_that_died_is_started_anew():
    with closing(MathJudge()) as judge:
        assert judge.equal("$1$", ["$1$"]) is True
        judge.process.kill()
        judge.process.wait()
        assert judge.equal("$1$", ["$1$"]) is True


def test_the_process_ends_with_the_judge():
    judge = MathJudge()
    assert judge.equal("$1$", ["$1$"]) is True
    process = judge.process
    judge.close()
    judge.close()
    assert process.poll() is not None


def test_towers_of_powers_come_to_an_end():
    with closing(MathJudge(cpu_seconds=1)) as judge:
        assert judge.equal("$3$", [r"$9^{9^{9^{9}}}$"]) in (False, None)
        assert judge.equal("$3$", ["$3$"]) is True


def test_modules_beside_the_worker_do_not_hide_others():
    # Run as a script, its folder is the first place Python looks for modules; there is a statistics.py.
    worker = Path(limited.__file__).with_name("limited_worker.py")
    assert worker.with_name("statistics.py").is_file()
    command = [sys.executable, str(worker), str(worker.with_name("math_worker.py")), "10"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
