"""Settings of the HTTP server."""

import dataclasses
import pathlib
import ssl
from typing import Literal

from jserve.config import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP server.

    Attributes:
      host: Address to listen on.
      port: Port to listen on; 0 takes a free port and prints it.
      served_model_name: Names of the model for clients, of which answers and metrics
        have the first; "" takes the name of --model, which clients may also write as it
        is typed.
      parse_special: Whose text may spell a control token such as <|im_end|>, for the
        tokenizer of a folder: "user", as chat templates filled by clients need, or
        "never".
      generation_config: Whether sampling parameters that requests do not name, and
        tokens that end an output, come from the model's generation_config.json:
        "auto", or "none".
      tool_parser: Form in which the model writes tool calls: hermes (also Qwen's),
        llama3_json or mistral; "auto" is that of its chat template, "none" is text.
      reasoning_parser: Whether what the model writes between <think> and </think>
        becomes reasoning_content: "think", or "none".
      root_path: Path at which a proxy serves this server, such as /llm.
      service_classes: JSON file with a list of service classes, each with a name and
        any of ttft_s, tbt_s, ttlt_s and max_queue_wait_s, in seconds, weight, and
        admission: queue, refuse or degrade. "" has best effort only.
      default_service_class: Service class of requests that name none.
      api_key_file: File of accepted API keys, one per line, or a JSON list of objects
        with name, key, and any of max_parallel_requests, max_waiting_requests and
        tokens_per_minute, which limit the requests of that key. "" requires no key.
      drain_timeout_s: Seconds that running requests have to finish after SIGTERM.
      keep_alive_s: Seconds that an idle connection is kept open for its client's next
        request; clients that pool connections expect a minute or more.
      sse_keep_alive_s: Seconds of silence after which a stream gets a comment, so that
        proxies keep it open; 0 sends none.
      head_timeout_s: Seconds that a client has to send a request's headers.
      body_timeout_s: Seconds that a client has to send a request's body.
      write_timeout_s: Seconds in which a client has to read something of what is sent,
        or its request is cancelled.
      max_connections: Most open connections. At the limit an idle one is closed, or
        else a new one gets status 503, but for /health and /metrics. 0 takes a third
        of the file descriptors that the process may have, at most 4096.
      cors_origins: Origins of web pages that may use the server, such as
        https://example.org, or "*" for all.
      tls_cert: PEM file of the server's certificates, which makes it serve HTTPS.
      tls_key: PEM file of the certificate's key, unless it is in the same file.
      unix_socket: Path of a unix socket to listen on, in place of host and port.
      max_body_bytes: Largest request body; 0 takes 64 KiB, and 48 bytes a token.
      log_level: Least level of jserve's log lines: debug, info, warning or error.
      log_format: Form of log lines, with the id of the request that they are about:
        "plain", or "json", an object a line.
      access_log: Whether the end of each HTTP request is logged, at level info.
      otlp_endpoint: URL of an OpenTelemetry collector that gets a trace of each request
        by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; needs the extra
        otel. "" sends none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    parse_special: Literal["never", "user"] = "never"
    generation_config: Literal["auto", "none"] = "auto"
    tool_parser: Literal["auto", "none", "hermes", "llama3_json", "mistral"] = "auto"
    reasoning_parser: Literal["none", "think"] = "none"
    root_path: str = ""
    service_classes: pathlib.Path | None = None
    default_service_class: str = "best_effort"
    api_key_file: pathlib.Path | None = None
    drain_timeout_s: float = 30.0
    keep_alive_s: int = 75
    sse_keep_alive_s: float = 15.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    max_connections: int = 0
    cors_origins: tuple[str, ...] = ()
    tls_cert: pathlib.Path | None = None
    tls_key: pathlib.Path | None = None
    unix_socket: pathlib.Path | None = None
    max_body_bytes: int = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["plain", "json"] = "plain"
    access_log: bool = False
    otlp_endpoint: str = ""

    def __post_init__(self) -> None:
        check_range("port", self.port, 0, 65535)
        for name in ("drain_timeout_s", "sse_keep_alive_s"):
            check_range(name, getattr(self, name), 0.0, 86400.0)
        check_range("keep_alive_s", self.keep_alive_s, 1, 86400)
        for name in ("head_timeout_s", "body_timeout_s", "write_timeout_s"):
            check_range(name, getattr(self, name), 0.001, 86400.0)
        check_range("max_connections", self.max_connections, 0, 2**20)
        if self.tls_cert or self.tls_key:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.tls_cert or "", self.tls_key)
            except OSError as error:
                files = f"tls_cert={self.tls_cert} with tls_key={self.tls_key}"
                raise ValueError(f"{files}: {error}") from None
        if self.max_body_bytes:
            check_range("max_body_bytes", self.max_body_bytes, 1024, 2**31)

    @property
    def address(self) -> str:
        """Where the server listens, for messages."""
        return str(self.unix_socket or f"{self.host}:{self.port}")
