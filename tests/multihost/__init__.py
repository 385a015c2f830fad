"""Several real processes, joined by `jax.distributed`, with a share of each batch: `member` is one of them, and
`cached` is one with caches.

Defects that were planted by hand to see the tests find them:

- The plan was not cut down to the rows of the process (`Shards.plan` returned `plan`): values and indices were wrong.
- A piece's first row was taken to be its row in the global batch (`_piece` without `bisect_left`): wrong values on the
  second process, and with gaps.
- Bad items dropped their batches, as in one process: the processes had different numbers of batches, and `total`, which
  all have to call, did not return.
- Each process asked its own view of the cache, and not what was agreed on (`Caches._form_agreed`): one launched the
  encoder and the other did not, and neither got on.
- A damaged entry in a row that both have was replaced (`Caches.refusal` returned None): the run went on.
- A state had all bad items at its top level: the states of the two processes could not be merged.
"""
