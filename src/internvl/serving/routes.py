"""Routes about the models: answers, vectors, tokens, explanations, health and numbers.

Knows HTTP and the protocol's objects; the work is done elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import ValidationError

from internvl.serving.admission import RETRY_SECONDS
from internvl.serving.answer_row import embed
from internvl.serving.caller import Caller, deadline_of
from internvl.serving.completing import Completing
from internvl.serving.connection import Events, NamedEvents, unless_gone
from internvl.serving.json_text import JsonAnswer
from internvl.serving.prepare import Preparer
from internvl.serving.protocol_chat import ChatRequest
from internvl.serving.protocol_completions import CompletionRequest
from internvl.serving.protocol_embeddings import EmbeddingRequest
from internvl.serving.protocol_replies import picture_object
from internvl.serving.protocol_responses import ResponseRequest
from internvl.serving.protocol_tokens import DetokenizeRequest, TokenizeRequest
from internvl.serving.refusals import as_request_error
from internvl.serving.responding import Responding
from internvl.serving.server import Server
from internvl.serving.threads import in_thread
from internvl.serving.tokenizing import ids_of_text, spell_all, text_of_ids


def get_server(request: Request) -> Server:
    found: Server = request.app.state.server
    return found


Here = Annotated[Server, Depends(get_server)]


def caller_of(request: Request, timeout: float | None) -> Caller:
    """Who asks, and the end of the time that the request and the server allow."""
    cap = get_server(request).settings.request_seconds
    return Caller(client=client_of(request), deadline=deadline_of(timeout, cap))


def client_of(request: Request) -> str:
    """Whose key was given; "" where none is needed."""
    return str(getattr(request.state, "client", ""))


async def chat_completions(chat: ChatRequest, request: Request, server: Here) -> Response:
    """Answer the messages, at once or as server-sent events."""
    service, name = server.chat_service(chat.model)
    caller = caller_of(request, chat.timeout)
    with server.admission.enter(caller.client) as place:
        if not chat.stream:
            return JsonAnswer(await unless_gone(request, service.complete(chat, name, caller)))
        exchange = await unless_gone(request, service.begin(chat, name, caller))
        return Events(service.stream(exchange), place.hand_over())


async def completions(asked: CompletionRequest, request: Request, server: Here) -> Response:
    """Continue text as it stands."""
    service, name = server.chat_service(asked.model)
    caller = caller_of(request, asked.timeout)
    with server.admission.enter(caller.client) as place:
        work = await in_thread(Completing, service, asked, name, caller)
        if not asked.stream:
            return JsonAnswer(await unless_gone(request, work.whole()))
        return Events(work.stream(), place.hand_over())


async def responses(asked: ResponseRequest, request: Request, server: Here) -> Response:
    """Answer messages of text, pictures and files; nothing is stored."""
    service, name = server.chat_service(asked.model)
    caller = caller_of(request, asked.timeout)
    with server.admission.enter(caller.client) as place:
        try:
            work = await unless_gone(request, Responding.begin(service, asked, name, caller))
        except ValidationError as reason:
            raise as_request_error(reason.errors()) from reason
        if not asked.stream:
            return JsonAnswer(await unless_gone(request, work.whole()))
        return NamedEvents(work.events(), place.hand_over())


async def embeddings(asked: EmbeddingRequest, request: Request, server: Here) -> dict[str, Any]:
    """Vectors of texts and pictures."""
    with server.admission.enter(client_of(request)):
        return await unless_gone(request, embed(server, asked))


async def explain(chat: ChatRequest, request: Request, server: Here) -> dict[str, Any]:
    """What a chat completion would run: pictures, tokens, prompt and memory. Nothing runs."""
    service, _ = server.chat_service(chat.model)
    with server.admission.enter(client_of(request)):
        found = await unless_gone(request, service.preparer.explain(chat))
    document = asdict(found)
    document["pictures"] = [picture_object(picture) for picture in found.pictures]
    return {
        **document,
        "prompt": document.pop("text"),
        "prompt_tokens": found.num_tokens,
        "image_tokens": found.num_vision_tokens,
        "max_model_len": service.preparer.max_model_len,
    }


async def tokenize(body: TokenizeRequest, request: Request, server: Here) -> dict[str, Any]:
    """Ids of a text, or of messages as the model would read them."""
    preparer = server.chat_service(body.model)[0].preparer
    with server.admission.enter(client_of(request)):
        ids = await unless_gone(request, _ids(body, preparer))
        found: dict[str, Any] = {"count": len(ids), "max_model_len": preparer.max_model_len, "tokens": ids}
        if body.return_token_strs:
            found["token_strs"] = await unless_gone(request, in_thread(spell_all, preparer, ids))
    return found


async def _ids(body: TokenizeRequest, preparer: Preparer) -> list[int]:
    if body.messages is not None:
        return list((await preparer.explain(ChatRequest(messages=body.messages))).ids)
    text = body.prompt or ""
    return await in_thread(ids_of_text, preparer, text, adds_special=body.add_special_tokens)


async def detokenize(body: DetokenizeRequest, request: Request, server: Here) -> dict[str, str]:
    """The text of ids."""
    preparer = server.chat_service(body.model)[0].preparer
    with server.admission.enter(client_of(request)):
        return {"prompt": await unless_gone(request, in_thread(text_of_ids, preparer, body.tokens))}


async def list_models(server: Here) -> dict[str, Any]:
    """The models, under each of their names."""
    return {"object": "list", "data": [_model(name, server) for name in server.names]}


async def find_model(model: str, server: Here) -> dict[str, Any]:
    """One model."""
    return _model(server.find_name(model), server)


def _model(name: str, server: Server) -> dict[str, Any]:
    is_chat = server.chat is not None and name in server.chat_names
    is_adapter = is_chat and name in server.settings.adapter_names
    return {
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "internvl",
        **({"parent": server.settings.served_names[0]} if is_adapter else {}),
        **({"max_model_len": server.chat.preparer.max_model_len} if is_chat and server.chat else {}),
    }


async def health(server: Here) -> JsonAnswer:
    """Whether answers are being computed, not only whether HTTP answers."""
    if (fault := server.fault) is None:
        return JsonAnswer({"status": "ok"})
    return JsonAnswer(
        {"status": "stopped", "reason": fault}, status_code=503, headers={"Retry-After": str(RETRY_SECONDS)}
    )


async def metrics(server: Here) -> Response:
    """Numbers in Prometheus' format."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
