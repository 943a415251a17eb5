# SPDX-License-Identifier: Apache-2.0
"""The only place that opens sockets: the permission to do so, and single HTTP requests.

A request goes through the proxies of the environment and follows redirects; a token is sent to the host it is for and to
no other. Whatever goes wrong is a `NetworkError`; a `TemporaryError` is one that may be gone at the next attempt.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import NetworkError, OfflineError

if TYPE_CHECKING:
    import http.client
    import urllib.request

logger = logging.getLogger("neuralforge")

TIMEOUT = 30.0  # seconds without a single byte
ATTEMPTS = 10  # failures in a row of a file, with nothing gained between them: three minutes
FIRST_ATTEMPTS = 4  # of what comes before: somebody may be waiting
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server asks for more
LONGEST_ASKED = 600.0  # seconds that a server may ask for
MOST_JSON = 1 << 24
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_CHECK = "check the connection and the proxy settings (HTTPS_PROXY); the same command goes on where it stopped"
_PORTAL = "is there a login page or a proxy between this machine and the source?"
_allowed = [False]  # see allow_network


class TemporaryError(NetworkError):
    """A failure that another attempt may not have; `wait` is how many seconds the server wants to be left alone."""

    def __init__(self, message: str, *, hint: str = _CHECK, wait: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wait = wait


def allow_network() -> None:
    """Allow this process to fetch what it is asked to fetch; without this no socket is ever opened.

    Example:
        >>> import neuralforge as nf
        >>> nf.allow_network()                      # doctest: +SKIP
        >>> nf.download("smollm2-135m")             # doctest: +SKIP
    """
    _allowed[0] = True


def require(what: str) -> None:
    """Raise OfflineError unless the network is allowed; `what` needs it."""
    if not _allowed[0]:
        hint = "allow it with --online (Python: nf.allow_network()), or give a local folder as the source"
        raise OfflineError(f"{what}: needs the network, which is not allowed", hint=hint)


def get(url: str, *, token: str = "", begin: int | None = None, end: int = 0) -> http.client.HTTPResponse:
    """Send one request and give the answer, its body unread.

    Args:
        url: http or https.
        token: for the host of `url` alone; empty for none.
        begin, end: the bytes [begin, end) are asked for; None asks for all. The server may send everything all the same.

    Raises:
        OfflineError: the network is not allowed.
        NetworkError: no answer, or one that says no.
    """
    import http.client
    import urllib.error
    import urllib.request

    require(url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "neuralforge", "Accept-Encoding": "identity"})
        if not request.host:
            raise ValueError("no host in it")
        if begin is not None:
            request.add_header("Range", f"bytes={begin}-{end - 1}")
        if token:
            _check_may_carry_token(request)
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        answer: http.client.HTTPResponse = _opener().open(request, timeout=TIMEOUT)
        return answer
    except urllib.error.HTTPError as e:
        with e:
            raise _refusal(e, url) from None
    except NetworkError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise _no_answer(e, url) from e


def _check_may_carry_token(request: urllib.request.Request) -> None:
    host = request.host.partition(":")[0]
    if request.type != "https" and host not in ("127.0.0.1", "localhost", "[::1]"):
        raise NetworkError(f"{request.full_url}: a token is not sent without encryption", hint="use an address with https")


def _opener() -> urllib.request.OpenerDirector:
    """Only http and https; urllib's usual set would also open files and FTP."""
    import urllib.request as u
    from urllib.parse import urlsplit

    class Redirects(u.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            new = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
            if new is None:
                return None
            here, there = urlsplit(req.full_url), urlsplit(new.full_url)  # req.host may be that of a proxy
            if here.scheme == "https" != there.scheme:
                raise NetworkError(f"{req.full_url}: leads to {newurl} without encryption", hint="use another source")
            token = req.unredirected_hdrs.get("Authorization")
            if token and here[:2] == there[:2]:
                new.add_unredirected_header("Authorization", token)
            return new

        http_error_308 = u.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it

    opener = u.OpenerDirector()
    kinds = (u.ProxyHandler, u.HTTPHandler, u.HTTPSHandler, u.UnknownHandler, u.HTTPDefaultErrorHandler, u.HTTPErrorProcessor)
    for handler in (*kinds, Redirects):
        opener.add_handler(handler())
    return opener


def _refusal(error: Any, url: str) -> NetworkError:
    """What an answer with an error status means."""
    what = f"{url}: the server answers {error.code} {error.reason or ''}".rstrip()
    if error.code in (401, 403):
        hint = "check its name; where a licence is to be accepted, do so on its page and set HF_TOKEN to your access token"
        return NetworkError(what, hint=hint)
    if error.code in (404, 410):
        return NetworkError(what, hint="check the name of the model and the source")
    if error.code in _TEMPORARY:
        wait = _retry_after(error.headers.get("Retry-After"))
        if wait is not None and wait > LONGEST_ASKED:
            return NetworkError(f"{what} and asks to wait {wait:.0f} s", hint="run the same command again then")
        return TemporaryError(what, hint="run the same command again later; it goes on where it stopped", wait=wait)
    return NetworkError(what, hint="check the source")


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date; None where the header has neither."""
    from email.utils import parsedate_to_datetime

    if value is None:
        return None
    try:
        return max(0.0, float(value) if value.strip().isdecimal() else _seconds_until(parsedate_to_datetime(value)))
    except (TypeError, ValueError):
        return None


def _seconds_until(then: Any) -> float:
    return float(then.timestamp() - time.time())


def _no_answer(error: BaseException, url: str) -> NetworkError:
    import ssl
    from http.client import InvalidURL

    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        hint = "check the clock and the certificates of this machine (SSL_CERT_FILE)"
        return NetworkError(f"{url}: its certificate cannot be trusted: {reason.verify_message}", hint=hint)
    what = f"{url}: {reason or type(error).__name__}"
    if isinstance(error, (ValueError, InvalidURL)) or "unknown url type" in str(reason):
        return NetworkError(what, hint="check the address of the source; it begins with https://")
    return TemporaryError(f"{url}: no answer: {reason or type(error).__name__}")


def read(answer: Any, most: int, url: str) -> bytes:
    """At most so many bytes of an answer's body; empty at its end.

    Raises:
        TemporaryError: the connection broke, or stood still for TIMEOUT seconds.
    """
    import http.client
    import zlib

    try:
        data: bytes = answer.read(most)
        return data
    except (OSError, EOFError, zlib.error, http.client.HTTPException, ValueError) as e:
        raise TemporaryError(f"{url}: the connection broke: {e or type(e).__name__}") from e


def get_json(url: str, *, token: str = "") -> Any:
    """The JSON value at an address, with further attempts.

    Raises:
        NetworkError: it cannot be had, or what comes is something else.
    """

    def attempt() -> Any:
        with get(url, token=token) as answer:
            body = read(decoded(answer, url), MOST_JSON, url)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            what = "a web page" if body.lstrip()[:1] == b"<" else "no JSON"
            raise TemporaryError(f"{url}: the answer is {what}", hint=_PORTAL) from None

    return persist(attempt)


def decoded(answer: Any, url: str) -> Any:
    """The body of an answer, without the compression that nobody asked for."""
    import gzip

    coding = (answer.headers.get("Content-Encoding") or "identity").strip().lower()
    if coding in ("gzip", "x-gzip"):
        return gzip.GzipFile(fileobj=answer)
    if coding != "identity":
        raise NetworkError(f"{url}: comes in the coding {coding!r}", hint="use another source, or mend the proxy between")
    return answer


def refuse_web_page(answer: Any, url: str) -> None:
    """Raise where a server says with a page for people, and status 200, that something is wrong."""
    kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") and not url.endswith((".html", ".htm")):
        raise TemporaryError(f"{url}: the answer is a web page, not the file", hint=_PORTAL)


def persist(attempt: Callable[[], Any]) -> Any:
    """What `attempt` gives, FIRST_ATTEMPTS times at most."""
    patience = Patience(FIRST_ATTEMPTS)
    while True:
        try:
            return attempt()
        except TemporaryError as e:
            patience.wait(e)


class Patience:
    """How often, and after which pauses, something is tried again."""

    def __init__(self, attempts: int) -> None:
        self._attempts, self._failures = attempts, 0

    def gained(self) -> None:
        """There was progress: failures are counted from 0 again."""
        self._failures = 0

    def wait(self, error: TemporaryError) -> None:
        """Pause, longer each time, or raise the error when there were too many in a row."""
        self._failures += 1
        if self._failures >= self._attempts:
            raise error
        seconds = min(LONGEST_WAIT, 0.25 * 2**self._failures) if error.wait is None else error.wait
        logger.warning("%s; trying again in %.3g s", error.message, seconds)
        time.sleep(seconds)
