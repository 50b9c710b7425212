//! The options for several processes and nodes.

use clap::{Args, ValueEnum};

/// The processes that run one job together, by default one.
#[derive(Clone, Debug, Default, Args)]
#[command(
    next_help_heading = "Processes and nodes (each runs the same command, with an equal share of the ranks)"
)]
pub struct ProcessArgs {
    /// The program that started the processes, whose environment is read: `torchrun`, `slurm` (srun) or `mpi` (mpirun);
    /// `none` reads nothing; `auto` takes the one whose environment is there.
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub launcher: LauncherName,
    /// Number of nodes, on each of which one process is started without a launcher.
    #[arg(long, value_name = "NODES")]
    pub nnodes: Option<usize>,
    /// Index of this node, from 0.
    #[arg(long, value_name = "INDEX")]
    pub node_rank: Option<usize>,
    /// Name or address of the host of the first process [default: the launcher's].
    #[arg(long, value_name = "HOST")]
    pub master_addr: Option<String>,
    /// Port at which the first process listens; `--master-port` is the same option [default: one that follows from the launcher's job; 29500 with
    /// `--nnodes`]. Under torchrun, whose own store listens at its port, the number is higher by 1000.
    #[arg(long, alias = "master-port", value_name = "PORT")]
    pub rendezvous_port: Option<u16>,
    /// Time in seconds within which all processes must have come.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub rendezvous_timeout: u64,
}

/// A program that starts processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LauncherName {
    /// The one whose environment is there.
    #[default]
    Auto,
    /// None: one process, or the processes of `--nnodes`.
    None,
    /// PyTorch's.
    Torchrun,
    /// Slurm's `srun`.
    #[value(alias = "srun")]
    Slurm,
    /// The `mpirun` of Open MPI, MPICH or Intel MPI.
    #[value(alias = "mpirun")]
    Mpi,
}
