"""Meets every refusal as a customer's program would: `errors.py BASE_URL < CASES`. Prints what it saw as JSON lines.

A case is a JSON line: what to ask, and with which key. Of each the official Python client's exception, its code, and how often the
client asked are told.
"""

import json
import sys
import time

import openai


def ask(base_url, case):
    asked = []
    http_client = openai.DefaultHttpxClient(event_hooks={"request": [asked.append]})
    client = openai.OpenAI(base_url=base_url, api_key=case["key"], http_client=http_client, timeout=60)
    headers = case.get("headers", {})
    began = time.monotonic()
    try:
        if case["body"] is None:
            client.get(case["path"], cast_to=object, options={"headers": headers})
        elif case["body"].get("stream"):
            for _ in client.chat.completions.create(**case["body"], extra_headers=headers):
                pass
        else:
            client.post(case["path"], body=case["body"], cast_to=object, options={"headers": headers})
        error = None
    except openai.APIError as caught:
        error = caught
    return {
        "name": case["name"],
        "class": type(error).__name__ if error else None,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "type": getattr(error, "type", None),
        "message": getattr(error, "message", None),
        "request_id": getattr(error, "request_id", None),
        "asked": len(asked),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(ask(sys.argv[1], json.loads(line))), flush=True)
