"""A loader under chaos: whatever happens, its batches are those of a quiet run, or its error is the promised one.

A case, drawn from a seed, is a loader of many epochs of small batches with some policy, executor and depth. Items
raise, at every try or at the first alone, end their process, hang, or return much additional data; a second process
kills workers, stops them and lets them go on; the consumer is interrupted and resumes from the state. It is compared,
ids, seeds, checksums and additional data, with a run in which nothing of that happens (`case.check`).

    python -m tests.chaos --seeds 1000

Defects that were planted by hand to see it find them, with the first 50 seeds, which the test suite runs:

- The rows that a worker had loaded of a chunk before it died at another were not loaded again (`Core._on_lost` without
  its last `_requeue`): what those items had returned was lost. One seed saw it, 35, in the additional data.
- A worker that took another's place found its numbers in the arena (`Arena.reset_status` did nothing): the engine ended
  with an error at once, in the first seeds.
- A worker's tasks were taken to be done without their answers although there was something to tell
  (`Arena.silently_done` without its look at `loud`): six seeds saw batches with bad items in them, and lost additional
  data.
"""
