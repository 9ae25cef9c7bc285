"""The HTTP server around the engine: OpenAI's Images API, AUTOMATIC1111's, health, metrics, a page.

`app` puts it together: `make_app(engine, options)`. `options` is what an operator decides. Every
router uses `pictures` (uploads and replies), `running` (waits for a request, and cancels it when
its client disconnects) and `errors` (an exception's status and body). `middleware`, `auth`,
`body_limit` and `origin` look at every request before a router does. Start with `app`.

Needs the extra `serve`.
"""

from eri_runtime.serve.http.app import make_app
from eri_runtime.serve.http.metrics import Metrics
from eri_runtime.serve.http.options import ServerOptions

__all__ = ["Metrics", "ServerOptions", "make_app"]
