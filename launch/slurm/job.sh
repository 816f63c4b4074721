#!/bin/bash
# What `famjax launch --target slurm` fills in (names between @) and submits.
@SBATCH@
@SETUP@
export PYTHONPATH=@CODE@"${PYTHONPATH:+:$PYTHONPATH}"

# SIGTERM, before the time limit or for another job, is for the processes of the step: they finish their training
# step, save it and leave with @UNFINISHED@. This shell waits for them, also where a signal breaks its wait off.
trap 'signalled=1' TERM
srun --kill-on-bad-exit=0 @COMMAND@ &
step=$!
signalled=1
while [ -n "$signalled" ]; do
    signalled=
    wait "$step"
    code=$?
done

if [ "$code" -eq @UNFINISHED@ ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @RESTARTS@ ]; then
    # Stopped before its last step: queued again, it goes on from its checkpoint.
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
