"""Uses the official Python client as a customer would: `sdk.py BASE_URL KEY MODEL`. Prints what it saw as JSON lines.

Each line is one answer: its request id, and the completion tokens it was told of, or null where none were asked for.
"""

import json
import sys

from openai import AuthenticationError, NotFoundError, OpenAI


def tell(what, request_id, tokens, text):
    assert text, f"{what}: an empty answer"
    print(json.dumps({"what": what, "request_id": request_id, "completion_tokens": tokens}), flush=True)


def streamed(client, what, create, text_of, **arguments):
    with create(stream=True, **arguments) as stream:
        request_id = stream.response.headers["x-request-id"]
        text, tokens, finish = "", None, None
        for chunk in stream:
            for choice in chunk.choices:
                text += text_of(choice) or ""
                finish = choice.finish_reason or finish
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
    assert finish == "length", f"{what}: finish_reason {finish}"
    tell(what, request_id, tokens, text)


def delta(choice):
    return choice.delta.content


def piece(choice):
    return choice.text


def main(base_url, key, model):
    client = OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)
    assert model in [entry.id for entry in client.models.list()]
    assert client.models.retrieve(model).id == model

    chat, complete = client.chat.completions.create, client.completions.create
    question = {"model": model, "messages": [{"role": "user", "content": "What does a weir do?"}]}
    prompt = {"model": model, "prompt": "The river"}
    usage = {"stream_options": {"include_usage": True}}
    for length in (1, 7, 33):
        answer = chat(max_tokens=length, **question)
        assert answer.usage.completion_tokens == length, answer.usage
        tell("chat", answer._request_id, answer.usage.completion_tokens, answer.choices[0].message.content)

        answer = complete(max_tokens=length, **prompt)
        tell("completion", answer._request_id, answer.usage.completion_tokens, answer.choices[0].text)

        streamed(client, "chat stream", chat, delta, max_tokens=length, **question)
        streamed(client, "chat stream with usage", chat, delta, max_tokens=length, **question, **usage)
        streamed(client, "completion stream", complete, piece, max_tokens=length, **prompt)
        streamed(client, "completion stream with usage", complete, piece, max_tokens=length, **prompt, **usage)

    try:
        chat(max_tokens=1, **{**question, "model": "nobody-serves-this"})
        raise AssertionError("an unknown model was served")
    except NotFoundError as error:
        assert error.code == "model_not_found" and error.request_id, error
    try:
        OpenAI(base_url=base_url, api_key="sk-weir-junk", max_retries=0).models.list()
        raise AssertionError("a junk key was let in")
    except AuthenticationError as error:
        assert error.code == "invalid_api_key" and error.type == "invalid_request_error", error


if __name__ == "__main__":
    main(*sys.argv[1:])
