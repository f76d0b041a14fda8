"""Pages from the templates of a package. The engine escapes every text, unless a template says that it is HTML."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["content_hash", "render"]


def render(package: str, name: str, **fields: object) -> str:
    """Return a page from the template ``name`` in the folder ``templates`` of a package.

    The template is also given ``script_hash``, that of its last inline script, for the page's content security policy.
    """
    environment = _environment(package)
    template = environment.get_template(name)
    script = environment.loader.get_source(environment, name)[0].rpartition("<script>")[2].partition("</script>")[0]  # type: ignore[union-attr]
    return template.render(fields, script_hash=content_hash(script))


def content_hash(script: str) -> str:
    """Return the hash by which a content security policy allows an inline script."""
    return b64encode(sha256(script.encode()).digest()).decode()


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    json: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}
    environment.policies["json.dumps_kwargs"] = json
    return environment
