"""A static file server that has one model: `python -m ckptstore_bench.hub.static_server FOLDER MODEL`.

It is what the endpoint is held against: the answers of the hub's routes are made once, and the kernel sends the files (sendfile). It says
its port as a line of JSON, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path

from aiohttp import web

COMMIT = "0" * 40


def application(folder: Path, model: str) -> web.Application:
    files = sorted(file.name for file in folder.iterdir())
    # What a hub knows of each file before anybody asks.
    sizes = {name: (folder / name).stat().st_size for name in files}
    tags = {name: hashlib.sha256(f"{name} {size_bytes}".encode()).hexdigest() for name, size_bytes in sizes.items()}
    about = {"id": model, "modelId": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    tree = [{"type": "file", "path": name, "size": sizes[name], "oid": tags[name][:40]} for name in files]

    async def info(request: web.Request) -> web.Response:
        return web.json_response(about)

    async def files_below(request: web.Request) -> web.Response:
        return web.json_response(tree)

    async def file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in tags:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        return web.FileResponse(folder / name, headers={"ETag": f'"{tags[name]}"', "X-Repo-Commit": COMMIT})

    served = web.Application()
    served.router.add_get(f"/api/models/{model}", info)
    served.router.add_get(f"/api/models/{model}/revision/{{revision}}", info)
    served.router.add_get(f"/api/models/{model}/tree/{{revision}}", files_below)
    served.router.add_get(f"/{model}/resolve/{{revision}}/{{name}}", file)
    return served


async def serve(folder: Path, model: str) -> None:
    runner = web.AppRunner(application(folder, model), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
