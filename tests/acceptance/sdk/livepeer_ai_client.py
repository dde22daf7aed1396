"""Makes one call with PyPI ``livepeer-ai``; runs in that SDK's own environment, where Fourfold is not installed.

Standard input: ``{"server_url", "image", "file_name", "fields", "unchecked", "is_async"}``; *unchecked* fields are set
past the SDK's own checks. Standard output: what the application would see, a result or an exception, as JSON.
"""

import asyncio
import json
import sys
from pathlib import Path

from livepeer_ai import Livepeer
from livepeer_ai.models import components, errors


def main() -> None:
    """Make the call that standard input describes."""
    call = json.load(sys.stdin)
    request = components.BodyGenUpscale(
        image=components.BodyGenUpscaleImage(file_name=call["file_name"], content=Path(call["image"]).read_bytes()),
        **call["fields"],
    )
    for name, value in call["unchecked"].items():
        setattr(request, name, value)
    try:
        seen = asyncio.run(upscale_async(call, request)) if call["is_async"] else upscale(call, request)
    except errors.HTTPError as exc:
        seen = {"raised": "HTTPError", "msg": exc.data.detail.msg}
    except errors.HTTPValidationError as exc:
        seen = {"raised": "HTTPValidationError", "detail": [vars(item) for item in exc.data.detail]}
    except errors.SDKError as exc:
        seen = {
            "raised": "SDKError",
            "status_code": exc.status_code,
            "body": exc.body,
            "headers": dict(exc.raw_response.headers),
        }
    json.dump(seen, sys.stdout)


def upscale(call, request):
    """Call as most applications do."""
    with Livepeer(http_bearer="any", server_url=call["server_url"]) as livepeer:
        return result(livepeer.generate.upscale(request=request))


async def upscale_async(call, request):
    """Call from a coroutine."""
    async with Livepeer(http_bearer="any", server_url=call["server_url"]) as livepeer:
        return result(await livepeer.generate.upscale_async(request=request))


def result(response):
    """Return the fields of the answer that applications read."""
    [image] = response.image_response.images
    headers = dict(response.http_meta.response.headers)
    return {"raised": None, "url": image.url, "seed": image.seed, "nsfw": image.nsfw, "headers": headers}


if __name__ == "__main__":
    main()
