"""The server over HTTP: FastAPI over `serving.Service`. No tensorflow, no seqio."""
