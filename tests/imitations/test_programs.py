"""What stand-ins run: builders begin with what is compiled already, and programs that outlive them are ended."""

import subprocess
from pathlib import Path

import psutil

from app.imitate import imitated
from app.imitations.programs import NOTE
from tests.support.agents import Toolbox
from tests.support.processes import python, running
from tests.support.waiting import eventually
from tests.support.world import test_settings

#: A stand-in's process: it starts two programs, one of which starts another, tells their ids, and is killed.
KILLED = """
import asyncio, json, os, signal
from pathlib import Path
from app.imitations.programs import start

async def main(folder):
    for name, argv in {"of fly": ["sleep", "60"], "of koyeb": ["sh", "-c", "sleep 60 & wait"]}.items():
        cwd = folder / name.removeprefix("of ") / "machines/one"
        cwd.mkdir(parents=True)
        program = await start(argv, {"PATH": os.environ["PATH"]}, cwd)
        print(program.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_start_ends_what_killed_stand_ins_left_running(
    toolbox: Toolbox, database_url: str, tmp_path: Path
) -> None:
    home = toolbox.home(tmp_path / "home")
    folder = home / "imitations"
    done = subprocess.run(python(KILLED, str(folder)), stdout=subprocess.PIPE, text=True, timeout=30, check=False)  # noqa: ASYNC221
    fly, koyeb = (psutil.Process(int(pid)) for pid in done.stdout.split())
    # A number that another process has had since: that is none of ours.
    (folder / "fly/stranger").mkdir()
    (folder / "fly/stranger" / NOTE).write_text(f"{koyeb.pid} {koyeb.create_time() - 60}")
    left = {fly.pid: fly, koyeb.pid: koyeb}
    assert all(running(one) for one in left.values())
    settings = test_settings(database_url, home, imitate=("fly",))
    async with imitated(settings):
        await eventually(lambda: not running(fly))
        assert running(koyeb)
    (child,) = koyeb.children()
    async with imitated(settings.model_copy(update={"imitate": ("koyeb",)})):
        await eventually(lambda: not running(koyeb) and not running(child))


async def test_builders_begin_with_the_standard_library_that_is_compiled_already(
    toolbox: Toolbox, database_url: str, tmp_path: Path
) -> None:
    home = toolbox.home(tmp_path / "home")
    (home / "local/seed" / toolbox.seed.name / "compiled").touch()
    async with imitated(test_settings(database_url, home, imitate=("fly",))):
        assert (home / "imitations/gocache/compiled").exists()
