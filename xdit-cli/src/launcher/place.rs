//! Reads the place of a process from options and variables.
//!
//! | launcher | variables |
//! |---|---|
//! | torchrun | `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`, `TORCHELASTIC_RUN_ID`, `TORCHELASTIC_RESTART_COUNT` |
//! | srun | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS`, `SLURM_LOCALID`, `SLURM_STEP_NODELIST` or `SLURM_JOB_NODELIST`, `SLURM_JOB_ID`, `SLURM_STEP_ID` |
//! | mpirun of Open MPI | `OMPI_COMM_WORLD_RANK`, `_SIZE`, `_LOCAL_RANK`, `_LOCAL_SIZE`, `PMIX_NAMESPACE` |
//! | mpirun of MPICH and Intel MPI | `PMI_RANK`, `PMI_SIZE`, `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` |

use std::hash::{DefaultHasher, Hash, Hasher};

use xdit_core::{Error, Result};

use crate::args::{LauncherName, ProcessArgs};

/// The port of a job that nothing else determines; PyTorch's default.
const PORT: u16 = 29_500;
/// The distance from torchrun's port, at which its store listens, to ours.
const BESIDE_TORCHRUN: u16 = 1000;

/// The place of a process in its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The index of the process.
    pub process: usize,
    /// The number of processes.
    pub processes: usize,
    /// The index of the process on its host, if a launcher gave one.
    pub local: Option<usize>,
    /// The host of process 0.
    pub host: String,
    /// The port at which process 0 listens.
    pub port: u16,
    /// The name of the job.
    pub job: String,
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Place {
    /// The place that `args` and `variables` speak of; `None` if this process is alone.
    ///
    /// # Errors
    /// If they are incomplete, or contradict each other.
    pub fn find(args: &ProcessArgs, variables: Variables<'_>) -> Result<Option<Self>> {
        let mut place = match (chosen(args, variables)?, args.nnodes) {
            (LauncherName::Torchrun, None) => torchrun(variables)?,
            (LauncherName::Slurm, None) => slurm(args, variables)?,
            (LauncherName::Mpi, None) => mpi(args, variables)?,
            (_, Some(nodes)) => by_options(args, nodes)?,
            (_, None) => {
                if args.node_rank.is_some() || args.master_addr.is_some() || args.rendezvous_port.is_some() {
                    return Err(Error::usage(
                        "the place of a process is given, but there is only one process",
                    )
                    .hint("add `--nnodes` with the number of processes, or start it with a launcher"));
                }
                return Ok(None);
            }
        };
        if place.processes == 0 || place.process >= place.processes {
            let Self { process, processes, .. } = place;
            return Err(Error::usage(format!("there is no process {process} of {processes}"))
                .hint("processes are counted from 0"));
        }
        if let Some(host) = &args.master_addr {
            place.host.clone_from(host);
        }
        if let Some(port) = args.rendezvous_port {
            place.port = port;
        }
        Ok(Some(place))
    }
}

/// The launcher to ask.
fn chosen(args: &ProcessArgs, variables: Variables<'_>) -> Result<LauncherName> {
    let is_set = |name: &&str| variables(name).is_some();
    let open_mpi = is_set(&"OMPI_COMM_WORLD_RANK");
    let slurm = is_set(&"SLURM_STEP_NUM_TASKS") && is_set(&"SLURM_PROCID");
    // Slurm itself speaks the protocol of MPICH's launcher.
    let mpich = !slurm && ["PMI_RANK", "PMI_SIZE"].iter().all(is_set);
    let torchrun = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"].iter().all(is_set);
    let there = [
        (torchrun, LauncherName::Torchrun, "torchrun"),
        (slurm, LauncherName::Slurm, "slurm"),
        (open_mpi || mpich, LauncherName::Mpi, "mpi"),
    ];
    let there: Vec<_> = there.into_iter().filter(|(is_there, ..)| *is_there).collect();
    match (args.launcher, &there[..]) {
        (LauncherName::Auto, []) => Ok(LauncherName::None),
        (LauncherName::Auto, [(_, _, name)]) if args.nnodes.is_some() => {
            Err(Error::usage(format!("`--nnodes` cannot be combined with the environment of `{name}`"))
                .hint("leave it out, or add `--launcher none`"))
        }
        (LauncherName::Auto, [(_, launcher, _)]) => Ok(*launcher),
        (LauncherName::Auto, several) => {
            let names: Vec<_> = several.iter().map(|(_, _, name)| format!("`{name}`")).collect();
            Err(Error::usage(format!("the environment is that of {}", names.join(" and of ")))
                .hint("choose with `--launcher` the one that started this very process"))
        }
        (LauncherName::None, _) => Ok(LauncherName::None),
        (launcher, _) if args.nnodes.is_some() => {
            let name = format!("{launcher:?}").to_lowercase();
            Err(Error::usage(format!("`--nnodes` cannot be combined with `--launcher {name}`"))
                .hint("the launcher gives the number of processes"))
        }
        (launcher, _) => Ok(launcher),
    }
}

fn by_options(args: &ProcessArgs, nodes: usize) -> Result<Place> {
    if nodes == 0 {
        return Err(Error::usage("`--nnodes 0` leaves nobody to work").hint("the minimum is 1"));
    }
    let process = match (args.node_rank, nodes) {
        (Some(process), _) => process,
        (None, 1) => 0,
        (None, _) => {
            return Err(Error::usage(format!("`--nnodes {nodes}` needs `--node-rank`"))
                .hint(format!("give each node its index, from 0 to {}", nodes - 1)));
        }
    };
    let host = match (&args.master_addr, nodes) {
        (Some(host), _) => host.clone(),
        (None, 1) => String::new(),
        (None, _) => {
            return Err(Error::usage(format!("`--nnodes {nodes}` needs `--master-addr`"))
                .hint("give all nodes the name or address of the first one"));
        }
    };
    Ok(Place { process, processes: nodes, local: None, host, port: PORT, job: "nnodes".to_owned() })
}

/// The number in the variable `name`.
fn number<T: std::str::FromStr>(variables: Variables<'_>, name: &str) -> Result<T> {
    let Some(text) = variables(name) else {
        return Err(Error::usage(format!("the variable `{name}` is not set"))
            .hint("start the program with the launcher, or choose another `--launcher`"));
    };
    text.trim().parse().map_err(|_| Error::usage(format!("the variable `{name}` is `{text}`, not a number")))
}

/// The number in the variable `name`, if it is set.
fn number_if_set(variables: Variables<'_>, name: &str) -> Result<Option<usize>> {
    variables(name).map(|_| number(variables, name)).transpose()
}

fn torchrun(variables: Variables<'_>) -> Result<Place> {
    let theirs: u16 = number(variables, "MASTER_PORT")?;
    let host =
        variables("MASTER_ADDR").ok_or_else(|| Error::usage("the variable `MASTER_ADDR` is not set"))?;
    let id = variables("TORCHELASTIC_RUN_ID").unwrap_or_default();
    // After a restart, processes of the first attempt must not meet those of the second.
    let attempt = variables("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
    Ok(Place {
        process: number(variables, "RANK")?,
        processes: number(variables, "WORLD_SIZE")?,
        local: number_if_set(variables, "LOCAL_RANK")?,
        host,
        port: theirs.checked_add(BESIDE_TORCHRUN).unwrap_or_else(|| theirs - BESIDE_TORCHRUN),
        job: format!("torchrun {id} {attempt}"),
    })
}

fn slurm(args: &ProcessArgs, variables: Variables<'_>) -> Result<Place> {
    let tasks =
        if variables("SLURM_STEP_NUM_TASKS").is_some() { "SLURM_STEP_NUM_TASKS" } else { "SLURM_NTASKS" };
    let processes = number(variables, tasks)?;
    let nodes = variables("SLURM_STEP_NODELIST").or_else(|| variables("SLURM_JOB_NODELIST"));
    let host = match (&args.master_addr, nodes.as_deref().and_then(first_node)) {
        (Some(host), _) => host.clone(),
        (None, Some(host)) => host,
        (None, None) if processes == 1 => String::new(),
        (None, None) => {
            return Err(Error::usage("Slurm names no node of the job")
                .hint("give the host of the first process with `--master-addr`"));
        }
    };
    let id = |name: &str| variables(name).unwrap_or_default();
    let job = format!("slurm {}.{}", id("SLURM_JOB_ID"), id("SLURM_STEP_ID"));
    Ok(Place {
        process: number(variables, "SLURM_PROCID")?,
        processes,
        local: number_if_set(variables, "SLURM_LOCALID")?,
        host,
        port: port_of(&job),
        job,
    })
}

fn mpi(args: &ProcessArgs, variables: Variables<'_>) -> Result<Place> {
    let open = variables("OMPI_COMM_WORLD_RANK").is_some();
    let [rank, size, local_rank, local_size] = match open {
        true => ["RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"].map(|name| format!("OMPI_COMM_WORLD_{name}")),
        false => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"].map(str::to_owned),
    };
    let processes = number(variables, &size)?;
    let here = number_if_set(variables, &local_size)?;
    let host = match &args.master_addr {
        Some(host) => host.clone(),
        None if here == Some(processes) || processes == 1 => "127.0.0.1".to_owned(),
        None => {
            return Err(Error::usage(format!("mpirun started {processes} processes, not all on this host"))
                .hint("give the host of the first process with `--master-addr`"));
        }
    };
    let id = variables("PMIX_NAMESPACE").or_else(|| variables("OMPI_MCA_ess_base_jobid")).unwrap_or_default();
    let job = format!("mpi {id}");
    Ok(Place {
        process: number(variables, &rank)?,
        processes,
        local: number_if_set(variables, &local_rank)?,
        host,
        port: port_of(&job),
        job,
    })
}

/// A port for `job`, between 20000 and 30000: below the ports that systems give to connections.
fn port_of(job: &str) -> u16 {
    let mut hasher = DefaultHasher::new();
    job.hash(&mut hasher);
    20_000 + (hasher.finish() % 10_000) as u16
}

/// The first node of a list such as `gpu[03-07,11],login`.
fn first_node(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(inside) = rest.strip_prefix('[') else {
        return Some(name.to_owned()).filter(|it| !it.is_empty());
    };
    let (inside, behind) = inside.split_once(']')?;
    let first = inside.split([',', '-']).next().filter(|first| !first.is_empty())?;
    let behind = behind.split(',').next().unwrap_or_default();
    // A second list in the same name, such as `rack[0-1]n[0-3]`.
    let behind =
        if behind.contains('[') { first_node(&rest[inside.len() + 2..])? } else { behind.to_owned() };
    Some(format!("{name}{first}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCHRUN: &[(&str, &str)] = &[
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node-a"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RUN_ID", "job7"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];
    const SLURM: &[(&str, &str)] = &[
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ("SLURM_JOB_NODELIST", "gpu[01-08]"),
        ("SLURM_JOB_ID", "123"),
        ("SLURM_STEP_ID", "0"),
        ("PMI_RANK", "5"),
        ("PMI_SIZE", "8"),
    ];
    const OPEN_MPI: &[(&str, &str)] = &[
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ("PMIX_NAMESPACE", "prterun-9"),
    ];
    const MPICH: &[(&str, &str)] =
        &[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];

    fn find(args: &ProcessArgs, variables: &[&[(&str, &str)]]) -> Result<Option<Place>> {
        let variables = variables.concat();
        Place::find(args, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn found(
        args: &ProcessArgs,
        variables: &[&[(&str, &str)]],
    ) -> (usize, usize, Option<usize>, String, u16) {
        let Place { process, processes, local, host, port, .. } = find(args, variables).unwrap().unwrap();
        (process, processes, local, host, port)
    }

    fn refused(args: &ProcessArgs, variables: &[&[(&str, &str)]]) -> String {
        find(args, variables).unwrap_err().to_string()
    }

    #[test]
    fn launchers_are_recognized_by_their_variables() {
        let auto = ProcessArgs::default();
        assert_eq!(find(&auto, &[]).unwrap(), None);
        // PyTorch's store listens at 29500.
        assert_eq!(found(&auto, &[TORCHRUN]), (3, 4, Some(1), "node-a".to_owned(), 30_500));
        let (process, processes, local, host, port) = found(&auto, &[SLURM]);
        assert_eq!((process, processes, local, &*host), (5, 8, Some(1), "gpu07"));
        assert!((20_000..30_000).contains(&port));
        let (process, processes, local, host, _) = found(&auto, &[OPEN_MPI]);
        assert_eq!((process, processes, local, &*host), (1, 2, Some(1), "127.0.0.1"));
        let (process, processes, local, host, _) = found(&auto, &[MPICH]);
        assert_eq!((process, processes, local, &*host), (0, 2, Some(0), "127.0.0.1"));
        // A batch script of Slurm is one process, although it has the variables of its job.
        let script = &SLURM[..1].iter().chain(&SLURM[6..7]).copied().collect::<Vec<_>>();
        assert_eq!(find(&auto, &[script]).unwrap(), None);
        let none = ProcessArgs { launcher: LauncherName::None, ..auto };
        assert_eq!(find(&none, &[TORCHRUN, OPEN_MPI]).unwrap(), None);
    }

    #[test]
    fn options_override_the_address() {
        let args = ProcessArgs {
            master_addr: Some("10.0.0.1".to_owned()),
            rendezvous_port: Some(7),
            ..ProcessArgs::default()
        };
        assert_eq!(found(&args, &[TORCHRUN]), (3, 4, Some(1), "10.0.0.1".to_owned(), 7));
        let args = ProcessArgs { nnodes: Some(2), node_rank: Some(1), ..args };
        assert_eq!(found(&args, &[]), (1, 2, None, "10.0.0.1".to_owned(), 7));
        let args = ProcessArgs { rendezvous_port: None, ..args };
        assert_eq!(found(&args, &[]), (1, 2, None, "10.0.0.1".to_owned(), 29_500));
    }

    #[test]
    fn the_highest_ports_have_a_neighbour_below() {
        let high = [&[("MASTER_PORT", "65000")], TORCHRUN].concat();
        assert_eq!(found(&ProcessArgs::default(), &[&high]).4, 64_000);
    }

    #[test]
    fn doubts_are_errors() {
        let auto = ProcessArgs::default();
        assert_eq!(
            refused(&auto, &[TORCHRUN, SLURM]),
            "the environment is that of `torchrun` and of `slurm`\nhint: choose with `--launcher` the one that \
             started this very process"
        );
        let torchrun = ProcessArgs { launcher: LauncherName::Torchrun, ..auto.clone() };
        assert_eq!(found(&torchrun, &[TORCHRUN, SLURM]).0, 3);
        assert!(refused(&torchrun, &[SLURM]).starts_with("the variable `MASTER_PORT` is not set"));
        let nodes = ProcessArgs { nnodes: Some(2), ..auto.clone() };
        assert!(refused(&nodes, &[]).starts_with("`--nnodes 2` needs `--node-rank`"));
        assert!(
            refused(&nodes, &[OPEN_MPI])
                .starts_with("`--nnodes` cannot be combined with the environment of `mpi`")
        );
        let nodes = ProcessArgs { node_rank: Some(2), ..nodes };
        assert!(refused(&nodes, &[]).starts_with("`--nnodes 2` needs `--master-addr`"));
        let nodes = ProcessArgs { master_addr: Some("a".to_owned()), ..nodes };
        assert!(refused(&nodes, &[]).starts_with("there is no process 2 of 2"));
        let lone = ProcessArgs { node_rank: Some(0), ..auto.clone() };
        assert!(
            refused(&lone, &[]).starts_with("the place of a process is given, but there is only one process")
        );
        let far: Vec<_> = OPEN_MPI.iter().filter(|(key, _)| !key.ends_with("LOCAL_SIZE")).copied().collect();
        assert!(refused(&auto, &[&far]).starts_with("mpirun started 2 processes, not all on this host"));
        let odd = [&[("OMPI_COMM_WORLD_SIZE", "two")][..], OPEN_MPI].concat();
        assert!(
            refused(&auto, &[&odd]).starts_with("the variable `OMPI_COMM_WORLD_SIZE` is `two`, not a number")
        );
    }

    #[test]
    fn the_first_node_of_a_list_is_found() {
        for (list, first) in [
            ("login", "login"),
            ("a,b", "a"),
            ("gpu[03-07,11],login", "gpu03"),
            ("gpu[5]", "gpu5"),
            ("rack[0-1]n[2-3]", "rack0n2"),
            ("n[1,3]-ib,x", "n1-ib"),
        ] {
            assert_eq!(first_node(list).as_deref(), Some(first), "{list}");
        }
        for list in ["", "[", "gpu[", "gpu[]"] {
            assert_eq!(first_node(list), None, "{list}");
        }
    }
}
