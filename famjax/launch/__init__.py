"""Starting jobs: as processes of this machine, on TPU VMs, on GKE, under Slurm."""
