"""What a user's script looks like to a type checker. `mypy` reads it: an `ignore` that is not needed is an error there,
so each one here says that the mistake on its line is found."""

import torch

import hf_optim

model = torch.nn.Linear(3, 1)
good = hf_optim.SMARAN(model.parameters(), lr=0.1, gamma=0.9, norm_scope="tensor")
loss = good.step(loss=1.0)
rates: list[float] = good.effective_lr()
hf_optim.SMARAN(model.parameters(), gama=0.9)  # type: ignore[call-arg]
hf_optim.AMVT(model.parameters(), lr="fast")  # type: ignore[arg-type]
hf_optim.NoSuchThing  # type: ignore[attr-defined] # noqa: B018
hf_optim.Session(model, good, epoch=1)  # type: ignore[call-arg]
raised: type[ValueError] = hf_optim.UserError
