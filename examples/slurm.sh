#!/bin/bash
# Train on one node of a SLURM job, then predict on all of them:  sbatch examples/slurm.sh
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"   # on a file system that all nodes see, as the Python environment with lorchestra[ray]

# one process per GPU of the first node, each with some of the members
srun --nodes=1 --ntasks=1 torchrun --nproc-per-node "$SLURM_GPUS_ON_NODE" -m lorchestra train \
    --data.train reviews.csv --out runs/reviews --if-exists resume

# Ray on all nodes, until the job ends
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resources=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE")
srun --nodes=1 --ntasks=1 --overlap --nodelist "$head" ray start --head --port 6379 "${resources[@]}" --block &
until (exec 3<> "/dev/tcp/$head/6379") 2> /dev/null; do sleep 1; done
srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --overlap --exclude "$head" \
    ray start --address "$head:6379" "${resources[@]}" --block &
all_nodes="import ray; ray.init('$head:6379'); raise SystemExit(sum(n['Alive'] for n in ray.nodes()) < $SLURM_NNODES)"
until python -c "$all_nodes" 2> /dev/null; do sleep 5; done

# the batch script runs on the first node: if the job is requeued, finished parts are skipped
lorchestra predict runs/reviews --data 'rows/*.parquet' --out answers --engine ray --address "$head:6379"
