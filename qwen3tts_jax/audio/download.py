"""Download from an http(s) address, within limits of time and size."""

import concurrent.futures
import http.client
import threading
import time
import urllib.parse
import urllib.request

URL_SECONDS = 30.0  # for the whole download, redirects included
URL_MAX_BYTES = 50_000_000
URL_MAX_REQUESTS = 6  # the first one and five redirects
DOWNLOAD_BYTES = 65_536  # read at a time
URL_SCHEMES = ("http", "https")
REDIRECTS = (301, 302, 303, 307, 308)


def download(url: str) -> bytes:
    """Fetch an http(s) address within URL_SECONDS and URL_MAX_BYTES.

    The timeout of a socket starts anew with every byte. So a thread does the work
    and the caller waits for it no longer than the whole time.
    """
    answer = concurrent.futures.Future()
    deadline = time.monotonic() + URL_SECONDS

    def work():
        try:
            answer.set_result(_fetch(url, deadline))
        except Exception as error:  # noqa: BLE001 (raised again in the caller)
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(timeout=URL_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ValueError(
            f"got {short(url)}, which failed ({str(error) or 'out of time'}), "
            f"expected http(s), at most {URL_MAX_BYTES / 1e6:g} MB within "
            f"{URL_SECONDS:g} s; check the address, or download it and pass the file"
        ) from error


def _fetch(url: str, deadline: float) -> bytes:
    # No handler for anything but http(s), and none that follows redirects by itself:
    # the standard one reads the whole body of the redirect, however long it is.
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler())
    for _ in range(URL_MAX_REQUESTS):
        scheme = url.partition(":")[0].lower()
        if scheme not in URL_SCHEMES:
            raise ValueError(f"the scheme {scheme!r} of {short(url)}")
        with opener.open(url, timeout=max(deadline - time.monotonic(), 1e-3)) as answer:
            if answer.status == http.client.OK:
                return _bounded_body(answer, deadline)
            if answer.status not in REDIRECTS:
                raise ValueError(f"status {answer.status} {answer.reason}")
            url = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
    raise ValueError(f"redirected {URL_MAX_REQUESTS} times")


def _bounded_body(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    promised, body = answer.length, bytearray()  # promised: None if not stated
    while len(body) != promised and (part := answer.read1(DOWNLOAD_BYTES)):
        body += part
        if len(body) > URL_MAX_BYTES:
            raise ValueError(f"more than {URL_MAX_BYTES / 1e6:g} MB")
        if time.monotonic() > deadline:
            raise ValueError("out of time")
    if promised is not None and len(body) < promised:
        raise ValueError(f"broke off after {len(body)} of {promised} bytes")
    return bytes(body)


def short(value) -> str:
    """repr of a value, its middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:80]}...{text[-20:]}"
