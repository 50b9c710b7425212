//! Another scheduler in place of a checkpoint's own, with the same options.

use serde_json::{Value, json};

use super::{CLASSES, Path, SchedulerOptions, Steps, class_of, path_of};
use crate::{Error, Result};

/// Short names of schedulers: the class, and the `algorithm_type` if the name says it.
///
/// They are based on the names that k-diffusion and web interfaces use.
const SHORT: [(&str, &str, Option<&str>); 16] = [
    ("ddim", "DDIMScheduler", None),
    ("ddpm", "DDPMScheduler", None),
    ("dpm2", "KDPM2DiscreteScheduler", None),
    ("dpm2-a", "KDPM2AncestralDiscreteScheduler", None),
    ("dpm++2m", "DPMSolverMultistepScheduler", Some("dpmsolver++")),
    ("dpm++2m-sde", "DPMSolverMultistepScheduler", Some("sde-dpmsolver++")),
    ("dpm++2s", "DPMSolverSinglestepScheduler", Some("dpmsolver++")),
    ("dpm++2s-sde", "DPMSolverSinglestepScheduler", Some("sde-dpmsolver++")),
    ("dpm++sde", "DPMSolverSDEScheduler", None),
    ("euler", "EulerDiscreteScheduler", None),
    ("euler-a", "EulerAncestralDiscreteScheduler", None),
    ("flow-euler", "FlowMatchEulerDiscreteScheduler", None),
    ("flow-heun", "FlowMatchHeunDiscreteScheduler", None),
    ("heun", "HeunDiscreteScheduler", None),
    ("lcm", "LCMScheduler", None),
    ("unipc", "UniPCMultistepScheduler", None),
];

/// Solvers for diffusion that can also follow a flow, by the option `use_flow_sigmas`.
const FOLLOW_FLOWS: [&str; 3] =
    ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"];

/// The endings of names that choose noise levels, and the options for them.
const SPREADS: [(&str, &str); 4] = [
    ("karras", "use_karras_sigmas"),
    ("exponential", "use_exponential_sigmas"),
    ("beta", "use_beta_sigmas"),
    ("lu", "use_lu_lambdas"),
];

/// The short names that [`replaced`] accepts.
pub const SHORT_NAMES: [&str; SHORT.len()] = {
    let mut names = [""; SHORT.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = SHORT[i].0;
        i += 1;
    }
    names
};

/// The config of the scheduler `name` with the options of `config`, as `from_config` of diffusers makes it.
///
/// `path` is that of the model. A name is that of a class, or one of [`SHORT_NAMES`]. It may end in `-karras`, `-exponential`,
/// `-beta` or `-lu`, which chooses the noise levels. The options are those of `config`; the new scheduler ignores those that
/// it does not have. A solver for diffusion that can follow a flow does so where the model needs it (`use_flow_sigmas`), with
/// the shift of `config`; `flow-` may stand before its name.
///
/// # Errors
/// A usage error if the name is unknown, or if the scheduler does not fit the model.
pub fn replaced(config: &Value, name: &str, path: Path) -> Result<Value> {
    let plain = |name: &str| name.to_lowercase().replace(['-', '_', ' '], "");
    let follows_flow = |name: &str| {
        let rest = name.to_lowercase().strip_prefix("flow")?.trim_start_matches(['-', '_', ' ']).to_owned();
        let (_, class, _) = SHORT.iter().find(|(short, ..)| plain(short) == plain(&rest))?;
        FOLLOW_FLOWS.contains(class).then_some(rest)
    };
    let find = |name: &str| {
        let short = SHORT.iter().find(|(short, ..)| plain(short) == plain(name));
        let class = || CLASSES.iter().find(|class| plain(class.name) == plain(name));
        short.map(|(_, class, algorithm)| (*class, *algorithm)).or_else(|| Some((class()?.name, None)))
    };
    let solver = follows_flow(name);
    if solver.is_some() && path == Path::Diffusion {
        return Err(does_not_fit(name, path));
    }
    let solver = solver.as_deref().unwrap_or(name);
    let with_spread = || {
        SPREADS.iter().find_map(|(ending, option)| {
            let name = solver.to_lowercase();
            let rest = name.strip_suffix(ending)?;
            Some((find(rest)?, Some(*option)))
        })
    };
    let found = find(solver).map(|found| (found, None)).or_else(with_spread);
    let ((class, algorithm), spread) = found.ok_or_else(|| unknown(name))?;

    let mut new = config.clone();
    let members = new.as_object_mut().ok_or_else(|| Error::usage("the scheduler config is not an object"))?;
    members.insert("_class_name".to_owned(), json!(class));
    members.extend(algorithm.map(|algorithm| ("algorithm_type".to_owned(), json!(algorithm))));
    if path == Path::Flow && FOLLOW_FLOWS.contains(&class) {
        if let Some(shift) = members.get("shift").filter(|_| !config["flow_shift"].is_number()).cloned() {
            members.insert("flow_shift".to_owned(), shift);
        }
        members.insert("use_flow_sigmas".to_owned(), json!(true));
        members.insert("prediction_type".to_owned(), json!("flow_prediction"));
    }
    if let Some(chosen) = spread {
        let flags = SPREADS.iter().map(|(_, option)| ((*option).to_owned(), json!(*option == chosen)));
        members.extend(flags);
    }
    if path_of(&new)? != path {
        return Err(does_not_fit(name, path));
    }
    if let Some(option) = spread {
        let class = class_of(&new)?;
        let mut options = SchedulerOptions::new(class.name, &new);
        (class.build)(&mut options, &Steps::new(2).of_image(1))?;
        if !options.has_read(option) {
            return Err(Error::usage(format!(
                "scheduler `{name}`: `{}` has no option `{option}`",
                class.name
            ))
            .hint("choose the scheduler without this ending, or another one"));
        }
    }
    Ok(new)
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn unknown(name: &str) -> Error {
    let all = SHORT_NAMES.into_iter().chain(super::class_names());
    let mut near: Vec<_> = all.map(|known| (distance(name, known), known)).collect();
    near.sort_by_key(|(distance, _)| *distance);
    let near: Vec<_> = near.into_iter().take(3).map(|(_, known)| known).collect();
    Error::usage(format!("there is no scheduler `{name}`")).hint(format!(
        "the nearest names are {}; all short names: {}, each also with `-karras`, `-exponential`, `-beta` or `-lu` if it \
         has such noise levels",
        list(&near),
        list(&SHORT_NAMES)
    ))
}

/// The error for a scheduler that follows the other path than `path`, the model's.
pub(super) fn does_not_fit(name: &str, path: Path) -> Error {
    let fits = |class: &&str| {
        let is_of_path = CLASSES.iter().any(|known| known.name == *class && known.path == path);
        is_of_path || path == Path::Flow && FOLLOW_FLOWS.contains(class)
    };
    let fitting: Vec<_> =
        SHORT.iter().filter(|(_, class, _)| fits(class)).map(|(short, ..)| *short).collect();
    let reason = match path {
        Path::Diffusion => "it follows a flow, and this model was trained on diffusion",
        Path::Flow => "it is for diffusion, and this model was trained on a flow",
    };
    Error::usage(format!("the scheduler `{name}` does not fit: {reason}"))
        .hint(format!("choose one of {}", list(&fitting)))
}

/// The edit distance between two names, in any case (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}
