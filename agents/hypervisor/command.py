"""Runs the programs that make disks: without a shell, and none goes on when its caller is cancelled."""
import asyncio


async def run(*arguments: str) -> str:
    """Run a program to its end; "" on success, else what it said about its failure."""
    process = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.DEVNULL,
                                                   stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode == 0:
        return ""
    return errors.decode(errors="replace").strip()[-300:] or f"status {process.returncode}"
