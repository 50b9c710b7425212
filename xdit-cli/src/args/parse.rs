//! Parses `argv` into [`Cli`], with error messages in the style of this program.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::{ParseFloatError, ParseIntError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches};
use xdit_core::Error;

use super::{Cli, habits};

/// Parses the command line.
///
/// # Errors
/// A usage error, if the command line is not valid.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Cli, Error> {
    let (argv, notes) = with_our_names(argv)?;
    let parsed = command().try_get_matches_from(&argv).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => Ok(Cli { notes, ..cli }),
        // `--help` and `--version` arrive as errors, and so does a bare `xdit`, which asks for help.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => Err(in_our_words(&error, &argv)),
    }
}

/// The command line. Where a number is expected, one may begin with a minus: it is a wrong number then, and not an unknown option.
fn command() -> Command {
    let whole = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<u16>()];
    let is_whole = move |arg: &Arg| whole.iter().any(|id| arg.get_value_parser().type_id() == *id);
    Cli::command().mut_subcommands(move |command| {
        command.mut_args(|arg| if is_whole(&arg) { arg.allow_negative_numbers(true) } else { arg })
    })
}

/// Replaces underscores in the names of long options by dashes (`--guidance_scale=4` becomes `--guidance-scale=4`) and
/// [names of other programs](habits) by ours. Options without a meaning here are left out; each has a note.
///
/// # Errors
/// A usage error for an option of another program that cannot be taken.
fn with_our_names(argv: impl IntoIterator<Item = OsString>) -> Result<(Vec<OsString>, Vec<String>), Error> {
    let (mut ours, mut notes) = (Vec::new(), Vec::new());
    let (mut options, mut skips) = (true, 0);
    let known = names();
    for argument in argv {
        options &= argument != "--";
        if let Some(error) = argument.to_str().filter(|_| options).and_then(|text| wrong_dashes(text, &known))
        {
            return Err(error);
        }
        let text = argument.to_str().filter(|text| options && text.starts_with('-'));
        if text.is_none() && skips > 0 {
            skips -= 1;
            continue;
        }
        skips = 0;
        let Some(text) = text else {
            ours.push(argument);
            continue;
        };
        let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
        let name = if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() };
        if let Some(error) = habits::otherwise(&name) {
            return Err(error);
        }
        match habits::nothing(&name) {
            Some((values, note)) => {
                notes.push(note);
                skips = if value.is_empty() { values } else { 0 };
            }
            None => ours.push(format!("{}{value}", habits::same(&name).unwrap_or(&name)).into()),
        }
    }
    Ok((ours, notes))
}

/// The names of all long options.
fn names() -> BTreeSet<String> {
    let command = command();
    let options = command.get_subcommands().flat_map(Command::get_arguments);
    options
        .flat_map(|option| {
            let aliases = option.get_all_aliases().unwrap_or_default();
            option.get_long().into_iter().chain(aliases).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

/// The error for the `known` long option after a single dash, which would be a short option with a value (`-seed` is `-s eed`), or
/// after one of the long dashes that text processors make of two.
fn wrong_dashes(text: &str, known: &BTreeSet<String>) -> Option<Error> {
    let (dash, name) = text.split_at_checked(text.chars().next()?.len_utf8())?;
    let is_wrong =
        matches!(dash, "-" | "\u{2010}" | "\u{2011}" | "\u{2012}" | "\u{2013}" | "\u{2014}" | "\u{2212}");
    let name = name.trim_start_matches(|char| is_wrong && char == '\u{2013}');
    let (name, _) = name.split_at(name.find('=').unwrap_or(name.len()));
    let ours = name.replace('_', "-");
    (is_wrong && known.contains(&ours)).then(|| {
        Error::usage(format!("`{text}` does not begin with two dashes"))
            .hint(format!("long options begin with two dashes: `--{ours}`"))
    })
}

/// The hint for a value that begins with a dash, which looks like an option: `--negative-prompt -blurry`. `argument` is the
/// option or the value that clap complains of.
fn dashed(argument: &str, argv: &[OsString]) -> Option<String> {
    let pairs = argv.windows(2).filter_map(|pair| Some((pair[0].to_str()?, pair[1].to_str()?)));
    let is_value =
        |text: &str| text.starts_with('-') && (!text.starts_with("--") || text.contains(char::is_whitespace));
    let mut dashed = pairs.filter(|(option, value)| {
        let takes_it = option.starts_with('-') && !option.contains('=') && is_value(value) && value.len() > 1;
        takes_it && (value.starts_with(argument) || *option == argument)
    });
    let (option, value) = dashed.next()?;
    Some(match option {
        "--seed" | "-s" => "seeds are not negative; `--seed random` takes a new one each time".to_owned(),
        _ if value.contains(char::is_whitespace) => {
            format!("a value that begins with a dash follows an equals sign: `{option}=\"{value}\"`")
        }
        _ => format!("a value that begins with a dash follows an equals sign: `{option}={value}`"),
    })
}

/// Converts the error to one sentence and a hint.
fn in_our_words(error: &clap::Error, argv: &[OsString]) -> Error {
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join("`, `")),
        _ => None,
    };
    // Clap names an option as `--name <VALUE>` or `--name[=<VALUE>]`.
    let name = |text: String| match text.find(" <").or(text.find("[=<")) {
        Some(end) => text[..end].to_owned(),
        None => text,
    };
    let argument = get(ContextKind::InvalidArg).map(name).unwrap_or_default();
    let value = get(ContextKind::InvalidValue).unwrap_or_default();
    let (message, hint) = match error.kind() {
        ErrorKind::UnknownArgument if !argument.starts_with('-') => {
            let before =
                argv.windows(2).find(|pair| pair[1] == *argument).map(|pair| pair[0].to_string_lossy());
            let switch = before.filter(|_| argument == "true" || argument == "false");
            let switch = switch.filter(|option| option.starts_with("--") && !option.contains('='));
            let switch =
                switch.map(|option| format!("the value follows an equals sign: `{option}={argument}`"));
            let has_prompts = argv.get(1).is_some_and(|command| command == "generate" || command == "plan");
            let hint = "put a text of several words in quotes: `--prompt \"a small cactus\"`";
            (format!("`{argument}` belongs to no option"), switch.or(has_prompts.then(|| hint.to_owned())))
        }
        ErrorKind::UnknownArgument => {
            let similar = || get(ContextKind::SuggestedArg).map(|name| format!("did you mean `{name}`?"));
            let hint = match argv.get(1).and_then(|first| first.to_str()) {
                Some(first) if first.starts_with(&argument) => {
                    Some("options follow a command: `xdit generate --prompt \"a small cactus\"`".to_owned())
                }
                // An unknown name is the fault, whatever its value begins with.
                _ if argument.starts_with("--") && !argument.contains(char::is_whitespace) => similar(),
                _ => dashed(&argument, argv).or_else(similar),
            };
            (format!("unknown option `{argument}`"), hint)
        }
        ErrorKind::InvalidSubcommand => {
            let hint = get(ContextKind::SuggestedSubcommand).map(|name| format!("did you mean `{name}`?"));
            (format!("unknown command `{}`", get(ContextKind::InvalidSubcommand).unwrap_or_default()), hint)
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            let valid = get(ContextKind::ValidValue)
                .filter(|valid| !valid.is_empty())
                .map(|valid| format!("possible values: `{valid}`"));
            (format!("`{argument}` needs a value"), dashed(&argument, argv).or(valid))
        }
        ErrorKind::InvalidValue => {
            let hint = get(ContextKind::ValidValue).map(|valid| format!("possible values: `{valid}`"));
            (format!("`{value}` is not a valid value of `{argument}`"), hint)
        }
        ErrorKind::ValueValidation => {
            let hint = std::error::Error::source(error).map(|source| match source {
                _ if source.is::<ParseIntError>() => "give a whole number that is not negative".to_owned(),
                _ if source.is::<ParseFloatError>() => "give a number such as `4.5`".to_owned(),
                source => source.to_string(),
            });
            (format!("`{value}` is not a valid value of `{argument}`"), hint)
        }
        ErrorKind::MissingRequiredArgument => (format!("`{argument}` is missing"), None),
        ErrorKind::ArgumentConflict => {
            let other = get(ContextKind::PriorArg).map(name).unwrap_or_default();
            match argument == other {
                true => (format!("`{argument}` is given twice"), None),
                false => (format!("`{argument}` cannot be combined with `{other}`"), None),
            }
        }
        ErrorKind::InvalidUtf8 => {
            let other = argv.iter().find(|argument| argument.to_str().is_none());
            let shown = other.map(|argument| argument.to_string_lossy()).unwrap_or_default();
            (format!("`{shown}` is not UTF-8"), Some("type it in the encoding UTF-8".to_owned()))
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            ("no command was given".to_owned(), Some("run `xdit --help` for a list of commands".to_owned()))
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            (line.trim_start_matches("error: ").to_owned(), None)
        }
    };
    Error::usage(message)
        .hint(hint.unwrap_or_else(|| "run the command with `--help` for its options".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(argv: &[&str]) -> String {
        let argv = ["xdit", "generate", "--model", "m"].iter().chain(argv).map(OsString::from);
        format!("{:?}", parse(argv).unwrap().command)
    }

    #[test]
    fn clap_accepts_the_definition() {
        command().debug_assert();
    }

    #[test]
    fn dashes_and_underscores_are_equivalent() {
        for option in Cli::command().find_subcommand("generate").unwrap().get_arguments() {
            let Some(name) = option.get_long().filter(|name| name.contains('-')) else { continue };
            let value = match option.get_id().as_str() {
                _ if !option.get_action().takes_values() => "",
                "output_type" => "=latent",
                "text_encoder_3" => "=none",
                "guidance_batch" => "=on",
                "clean_caption"
                | "no_use_resolution_binning"
                | "vae_tiling"
                | "temporal_decoder"
                | "no_enable_temporal_attentions" => "=false",
                _ => "=3",
            };
            let (dashes, underscores) =
                (format!("--{name}{value}"), format!("--{}{value}", name.replace('-', "_")));
            assert_ne!(cli(&[&dashes]), cli(&[]), "{name}");
            assert_eq!(cli(&[&dashes]), cli(&[&underscores]), "{name}");
        }
    }

    #[test]
    fn only_option_names_are_changed() {
        let out = cli(&["--negative_prompt=a_b=c_d", "--prompt", "snake_case"]);
        assert!(out.contains("a_b=c_d") && out.contains("snake_case"), "{out}");
        let (kept, _) = with_our_names(["--", "--a_b", "--verbose"].map(OsString::from)).unwrap();
        assert_eq!(kept[1..], ["--a_b", "--verbose"]);
    }

    #[test]
    fn names_of_other_programs_are_accepted() {
        for (other, ours) in [
            (&["-p", "a", "-o", "a.png"][..], &["--prompt", "a", "--output", "a.png"][..]),
            (&["-H", "512", "-W", "768"], &["--height", "512", "--width", "768"]),
            (&["--steps", "8", "-s", "3"], &["--num-inference-steps", "8", "--seed", "3"]),
            (&["--cfg-scale", "4", "-n", "b"], &["--guidance-scale", "4", "--negative-prompt", "b"]),
            (&["--num-images-per-prompt", "2"], &["--num-images", "2"]),
            (&["--precision", "bf16"], &["--dtype", "bf16"]),
            (&["--enable_vae_temporal_decoder"], &["--temporal-decoder"]),
            (&["--guidance=4", "-b", "2"], &["--guidance-scale=4", "--num-images", "2"]),
            (&["--torch_dtype", "torch.bfloat16"], &["--dtype", "bf16"]),
            (&["--attention_backend", "flash", "--prompt", "a"], &["--prompt", "a"]),
            (&["--profile_wait=1", "--rng", "cuda", "--run_profile", "-p", "a"], &["--prompt", "a"]),
        ] {
            assert_eq!(cli(other), cli(ours), "{other:?}");
        }
    }

    #[test]
    fn options_without_a_meaning_here_are_noted() {
        let argv = ["xdit", "generate", "--use_torch_compile", "--prompt", "a", "--trust-remote-code"];
        let cli = parse(argv.map(OsString::from)).unwrap();
        assert_eq!(
            cli.notes,
            [
                "`--use-torch-compile` changes nothing: nothing is compiled by PyTorch",
                "`--trust-remote-code` changes nothing: no code of a model is run"
            ]
        );
    }

    /// The files of stable-diffusion.cpp lead to the folder of diffusers; what is not there is named.
    #[test]
    fn options_that_cannot_be_taken() {
        let error = |argv: &[&str]| {
            let argv = ["xdit", "generate"].iter().chain(argv).map(OsString::from);
            parse(argv).unwrap_err().to_string()
        };
        insta::assert_snapshot!(error(&["--diffusion-model", "flux.gguf", "--t5xxl", "t5.safetensors"]), @r"
        `--diffusion-model` names a single file, and a model here is a folder with a part in each subfolder
        hint: give the folder in the diffusers layout, or its id on the hub, with `--model`; diffusers' `from_single_file` and `save_pretrained` convert files
        ");
        insta::assert_snapshot!(error(&["--prompt", "a", "--clip_l=clip_l.safetensors"]), @r"
        `--clip-l` names a single file, and a model here is a folder with a part in each subfolder
        hint: give the folder in the diffusers layout, or its id on the hub, with `--model`; diffusers' `from_single_file` and `save_pretrained` convert files
        ");
        insta::assert_snapshot!(error(&["--use_teacache"]), @r"
        `--use-teacache` skips parts of steps, which is not supported
        hint: leave it out; of the methods here, only `--distrifusion` and PipeFusion use values of earlier steps
        ");
        insta::assert_snapshot!(error(&["--token", "hf_secret"]), @r"
        `--token` is not an option
        hint: set the variable `HF_TOKEN`, which other users of the machine cannot see
        ");
    }

    #[test]
    fn values_that_begin_with_a_dash() {
        let hint = |argv: &[&str]| {
            let argv = ["xdit", "generate"].iter().chain(argv).map(OsString::from);
            parse(argv).unwrap_err().to_string().split_once("hint: ").unwrap().1.to_owned()
        };
        let equals = "a value that begins with a dash follows an equals sign: ";
        assert_eq!(hint(&["--negative-prompt", "-blurry"]), format!("{equals}`--negative-prompt=-blurry`"));
        assert_eq!(hint(&["--prompt", "-- a cat"]), format!("{equals}`--prompt=\"-- a cat\"`"));
        assert_eq!(hint(&["--output", "-a.png"]), format!("{equals}`--output=-a.png`"));
        assert_eq!(
            hint(&["--seed", "-1"]),
            "seeds are not negative; `--seed random` takes a new one each time"
        );
        assert_eq!(hint(&["--quiet", "--modle", "a"]), "did you mean `--model`?");
        assert!(hint(&["a", "cat"]).starts_with("put a text of several words in quotes"));
    }

    #[test]
    fn options_of_the_python_xdit_are_accepted() {
        let out = cli(&["--output_type", "pil", "--use_split_batch", "--warmup_steps", "3"]);
        assert!(
            out.contains("Png")
                && out.contains("use_cfg_parallel: true")
                && out.contains("warmup_steps: Some("),
            "{out}"
        );
    }
}
