"""The routes of the hub that clients use to load models, under `/hf`. One route parses every address: revisions are quoted in them.

A file's answer begins when its first block is there, whatever has to be fetched for it. Nothing is redirected: a client of the older
generation takes a redirect's length for the file's.
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ckptstore.errors import CkptStoreError, InvalidInput, Unauthorized
from ckptstore_server.api.dependencies import TheServices
from ckptstore_server.hugging_face import documents
from ckptstore_server.hugging_face.access import Access
from ckptstore_server.hugging_face.addresses import Address, FileAddress, ListAddress, ModelAddress, WhoAmI, parse
from ckptstore_server.hugging_face.faults import EntryNotFound, RepoNotFound, error_answer
from ckptstore_server.hugging_face.snapshots import ModelFile, Snapshot
from ckptstore_server.readers.cache import content as contents
from ckptstore_server.services import Services

PREFIX = "/hf/"
#: Entries of one page of a listing, and models of one list.
PAGE_ENTRIES = 1000
_TRUE = frozenset({"true", "1"})

router = APIRouter(include_in_schema=False)


@router.api_route(PREFIX + "{address:path}", methods=["GET", "HEAD", "POST"])
async def hub(services: TheServices, request: Request) -> Response:
    access = Access(request, services.node.settings)
    snapshot: Snapshot | None = None
    try:
        address = parse(_raw_path(request))
        if isinstance(address, FileAddress | ModelAddress):
            _check_method(request, address)
            access.check(address.repo, services.models.folder_of(address.repo))
            snapshot = await services.models.snapshot(address.repo, address.revision)
        if isinstance(address, FileAddress):
            return await _file(services, request, snapshot, address)
        if isinstance(address, ModelAddress):
            return await _model(services, request, access, snapshot, address)
        return await _about(services, request, access, address)
    except CkptStoreError as error:
        hidden = isinstance(error, RepoNotFound) and not access.is_trusted
        return error_answer(error, snapshot.commit if snapshot is not None else None, status=401 if hidden else error.http_status)


def _raw_path(request: Request) -> bytes:
    """What was sent after the prefix, still quoted."""
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    return raw.partition(b"?")[0].removeprefix(PREFIX.encode())


def _check_method(request: Request, address: Address) -> None:
    if request.method == "POST" and not (isinstance(address, ModelAddress) and address.act == "paths-info"):
        raise InvalidInput("models are only read here", operation="POST", subject=request.url.path)


# --- files -------------------------------------------------------------------------------------------------------------------------


async def _file(services: Services, request: Request, snapshot: Snapshot | None, address: FileAddress) -> Response:
    assert snapshot is not None
    file = snapshot.files.get(address.name)
    if file is None:
        raise EntryNotFound("the model has no such file", operation="read", subject=f"{address.repo}/{address.name}")
    headers = _headers(snapshot, file)
    if request.method == "HEAD":
        return Response(headers=headers | {"content-length": str(file.size_bytes)}, media_type="application/octet-stream")
    copy = await services.cache.open(file.path, file.version)
    answer = contents.answer(copy, request.headers, etag=file.etag)
    if answer.is_bodiless:
        return Response(status_code=answer.status, headers=headers | answer.headers)
    await answer.start()
    return StreamingResponse(
        answer.chunks(), status_code=answer.status, headers=headers | answer.headers, media_type="application/octet-stream"
    )


def _headers(snapshot: Snapshot, file: ModelFile) -> dict[str, str]:
    headers = {
        "etag": f'"{file.etag}"',
        "x-repo-commit": snapshot.commit,
        "x-linked-size": str(file.size_bytes),
        "accept-ranges": "bytes",
    }
    return headers | ({"x-linked-etag": f'"{file.etag}"'} if file.sha256 is not None else {})


# --- models ------------------------------------------------------------------------------------------------------------------------


async def _model(
    services: Services, request: Request, access: Access, snapshot: Snapshot | None, address: ModelAddress
) -> Response:
    assert snapshot is not None
    query = request.query_params
    expand = query.get("expand", "").lower() in _TRUE
    match address.act:
        case "tree":
            return _tree(request, snapshot, address, expand=expand)
        case "paths-info":
            return JSONResponse(_paths_info(snapshot, await request.body(), request.headers.get("content-type", "")))
        case "refs":
            return JSONResponse(documents.refs(await services.models.revisions(address.repo)))
        case "commits":
            return JSONResponse(documents.commits(snapshot))
        case _:
            private = not access.is_public(services.models.folder_of(address.repo))
            return JSONResponse(documents.model_info(snapshot, private=private, with_blobs=query.get("blobs", "").lower() in _TRUE))


def _tree(request: Request, snapshot: Snapshot, address: ModelAddress, *, expand: bool) -> Response:
    recursive = request.query_params.get("recursive", "").lower() in _TRUE
    entries = list(documents.tree_entries(snapshot, address.name, recursive=recursive, expand=expand))
    if not entries and address.name:
        raise EntryNotFound("the model has no such folder", operation="list", subject=f"{address.repo}/{address.name}")
    start = int(cursor) if (cursor := request.query_params.get("cursor", "0")).isdigit() else 0
    headers = {"x-repo-commit": snapshot.commit}
    if start + PAGE_ENTRIES < len(entries):
        url = request.url.include_query_params(cursor=start + PAGE_ENTRIES)
        headers["link"] = f'<{url}>; rel="next"'
    return JSONResponse(entries[start : start + PAGE_ENTRIES], headers=headers)


def _paths_info(snapshot: Snapshot, body: bytes, content_type: str) -> list[dict[str, object]]:
    """Of the paths that are there: files, and folders."""
    paths, expand = _asked_paths(body, content_type)
    found: list[dict[str, object]] = []
    folders = {entry["path"]: entry for entry in documents.tree_entries(snapshot, "", recursive=True, expand=expand)}
    for path in paths:
        if (entry := folders.get(path.strip("/"))) is not None:
            found.append(entry)
    return found


def _asked_paths(body: bytes, content_type: str) -> tuple[list[str], bool]:
    """A form or JSON, as the client's generation has it."""
    try:
        if "json" in content_type:
            given = orjson.loads(body)
            paths, expand = given["paths"], bool(given.get("expand", False))
        else:
            form = parse_qs(body.decode("utf-8"))
            paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in _TRUE
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("`paths` is a list of names", operation="POST", subject="paths-info") from error
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidInput("`paths` is a list of names", operation="POST", subject="paths-info")
    return paths, expand


async def _about(services: Services, request: Request, access: Access, address: Address) -> Response:
    if isinstance(address, WhoAmI):
        if not access.is_trusted:
            raise Unauthorized("the token is wrong", operation="read", subject="whoami", hint="set HF_TOKEN")
        return JSONResponse({"type": "user", "name": "ckptstore", "fullname": "ckptstore", "orgs": [], "auth": {"type": "access_token"}})
    assert isinstance(address, ListAddress)
    wanted = request.query_params.get("search", "").lower()
    author = request.query_params.get("author")
    limit = min(int(text) if (text := request.query_params.get("limit", "")).isdigit() else PAGE_ENTRIES, PAGE_ENTRIES)
    ids = [
        name
        for name in await services.models.ids(limit=PAGE_ENTRIES)
        if wanted in name.lower() and (author is None or name.startswith(f"{author}/"))
    ]
    allowed = [name for name in ids if access.is_trusted or access.is_public(services.models.folder_of(name))]
    return JSONResponse([{"_id": name, "id": name, "modelId": name, "tags": []} for name in allowed[:limit]])
