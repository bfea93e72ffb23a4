"""Runs llama.cpp's own HTTP server on loopback until its standard input is closed: `serve.py MODEL.gguf PORT`.

Ending with standard input means that a test which dies leaves no server behind.
"""

import os
import sys

import xllamacpp


def main(model, port):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 32768
    params.n_parallel = 4
    params.n_threads_http = 4
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.use_jinja = True
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
