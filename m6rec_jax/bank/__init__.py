"""The prompt bank: prompts of many tasks on one frozen backbone, on disk and loaded.

    BANK/                      `bank.folder.BankFolder`
      ctr/                     one folder per task, complete by itself
        prompts/               its tensors, an Orbax item
        manifest.json          whose they are and what they fit: `bank.folder`
      genres/

`bank.export` takes tasks out of a training run. `bank.loading` opens a folder with its backbone as
a `bank.loading.LoadedBank`, which commands serve.
"""
