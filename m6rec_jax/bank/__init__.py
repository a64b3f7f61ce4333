"""The prompt bank: prompts of many tasks on one frozen backbone, on disk and loaded.

    BANK/                      `bank.folder.BankFolder`
      ctr/                     one folder per task, complete by itself
        prompts/               its tensors, an Orbax item
        manifest.json          whose they are and what they fit: `bank.manifest`
        dataset.json           the data set's template, where there is one
      genres/

`bank.export` takes tasks out of a training run, `bank.loading` stacks a folder's tasks for
serving (`bank.loaded`, and as what commands answer requests with `bank.loading`).
"""
