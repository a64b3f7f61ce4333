"""Answering requests: the service, files of requests, chat, indexes. No tensorflow."""
