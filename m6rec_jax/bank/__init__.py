"""The prompt bank: prompts of many tasks on one frozen backbone, on disk and loaded.

    BANK/                   `bank.folder.BankFolder`
      ctr.safetensors       one file per task: its tensors, and a manifest in the metadata, which
      genres.safetensors    says whose they are and what they fit

`bank.export` takes tasks out of a training run. `bank.loading` opens a folder with its backbone as
a `bank.loading.LoadedBank`, which commands serve.
"""
