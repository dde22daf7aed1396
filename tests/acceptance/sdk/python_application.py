"""An application written with one of Livepeer's Python SDKs, to be told what to call.

Runs in the SDK's own environment, where Fourfold is not installed. Argument: the package, ``livepeer_ai`` or
``livepeer``. Standard input: a call a line, ``{"server_url", "image", "file_name", "upload", "fields", "unchecked",
"retries", "is_async"}``; *upload* says in which of the SDK's forms the image is handed over, *unchecked* fields are
set past the SDK's own checks. Standard output: for each what the application would see, a result or an exception.
"""

import asyncio
import contextlib
import importlib
import inspect
import json
import sys
from pathlib import Path

SDK = importlib.import_module(sys.argv[1])
components = importlib.import_module(f"{sys.argv[1]}.models.components")
retries = importlib.import_module(f"{sys.argv[1]}.utils")
#: The two name the parameter for the bearer token differently.
TOKEN = next(name for name in ("http_bearer", "api_key") if name in inspect.signature(SDK.Livepeer).parameters)
TIMEOUT_MS = 120_000


def main() -> None:
    """Make the calls that standard input describes, one by one."""
    for line in sys.stdin:
        print(json.dumps(seen(json.loads(line))), flush=True)


def seen(call):
    """Make one call; return what comes of it."""
    with Path(call["image"]).open("rb") as file:
        content = file.read() if call["upload"] == "bytes" else file
        image = components.BodyGenUpscaleImage(file_name=call["file_name"], content=content)
        request = components.BodyGenUpscale(image=image, **call["fields"])
        for name, value in call["unchecked"].items():
            setattr(request, name, value)
        try:
            return result(asyncio.run(upscale_async(call, request)) if call["is_async"] else upscale(call, request))
        except Exception as exc:  # noqa: BLE001  whatever it is, the test decides whether it is right
            return failure(exc)


def client(call):
    """Return the SDK's client."""
    options = {TOKEN: "any", "server_url": call["server_url"], "timeout_ms": TIMEOUT_MS}
    if call["retries"] is not None:
        backoff = retries.BackoffStrategy(**call["retries"])
        options["retry_config"] = retries.RetryConfig("backoff", backoff, False)
    return SDK.Livepeer(**options)


def upscale(call, request):
    """Call as most applications do."""
    livepeer = client(call)
    with livepeer if hasattr(livepeer, "__enter__") else contextlib.nullcontext():
        return livepeer.generate.upscale(request=request)


async def upscale_async(call, request):
    """Call from a coroutine."""
    livepeer = client(call)
    async with livepeer if hasattr(livepeer, "__aenter__") else contextlib.nullcontext():
        return await livepeer.generate.upscale_async(request=request)


def result(response):
    """Return the fields of the answer that applications read."""
    [image] = response.image_response.images
    headers = dict(response.http_meta.response.headers)
    return {"raised": None, "url": image.url, "seed": image.seed, "nsfw": image.nsfw, "headers": headers}


def failure(exc):
    """Return what an exception of the SDK tells: an error of the API is typed, by its status, or has the bare body."""
    facts = {"raised": type(exc).__name__, "text": str(exc)}
    if hasattr(exc, "status_code"):
        return facts | {"status": exc.status_code, "body": exc.body, "headers": dict(exc.raw_response.headers)}
    if hasattr(exc, "data"):
        detail = exc.data.detail
        facts |= {"msg": detail.msg} if hasattr(detail, "msg") else {"detail": [vars(item) for item in detail]}
    return facts


if __name__ == "__main__":
    main()
