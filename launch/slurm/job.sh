#!/bin/bash
# What `famjax launch --target slurm` fills in (names between @) and submits.
@SBATCH@
@SETUP@
export PYTHONPATH=@CODE@"${PYTHONPATH:+:$PYTHONPATH}"
# Since Slurm 22.05 srun does not take this from the job, and gives every process one core.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# On SIGTERM, before the time limit or on preemption, the processes finish their training step, save a checkpoint and
# exit with @UNFINISHED@. This shell waits for them, also after a signal has interrupted its wait.
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
    # Stopped before its last step: requeue it, to resume from its checkpoint.
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
