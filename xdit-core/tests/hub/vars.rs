//! Tests of model names and environment variables.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use xdit_core::ErrorKind;
use xdit_core::hub::{HubOptions, resolve};

fn from(vars: &[(&str, &str)]) -> HubOptions {
    let vars: BTreeMap<&str, &str> = vars.iter().copied().collect();
    HubOptions::from_vars(|name| vars.get(name).map(|&value| value.to_owned()))
}

#[test]
fn the_cache_folder_is_that_of_huggingface_hub() {
    let cache = |vars: &[(&str, &str)]| from(vars).cache_dir;
    let mut vars = vec![("HOME", "/home/me")];
    assert_eq!(cache(&vars), PathBuf::from("/home/me/.cache/huggingface/hub"));
    vars.push(("XDG_CACHE_HOME", "/xdg"));
    assert_eq!(cache(&vars), PathBuf::from("/xdg/huggingface/hub"));
    vars.push(("HF_HOME", "~/hf"));
    assert_eq!(cache(&vars), PathBuf::from("/home/me/hf/hub"));
    vars.push(("HUGGINGFACE_HUB_CACHE", "/old"));
    assert_eq!(cache(&vars), PathBuf::from("/old"));
    vars.push(("HF_HUB_CACHE", "/new"));
    assert_eq!(cache(&vars), PathBuf::from("/new"));
}

#[test]
fn a_token_is_read_from_its_variable_or_else_from_its_file() {
    let home = tempfile::tempdir().unwrap();
    let home_path = home.path().to_str().unwrap();
    assert_eq!(from(&[("HF_HOME", home_path)]).token, None);
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    assert_eq!(from(&[("HF_HOME", home_path)]).token.as_deref(), Some("hf_file"));
    let both = from(&[("HF_HOME", home_path), ("HF_TOKEN", "hf_variable")]);
    assert_eq!(both.token.as_deref(), Some("hf_variable"));
    assert!(!format!("{both:?}").contains("hf_variable"));
}

#[test]
fn offline_endpoint_and_empty_variables() {
    for (value, offline) in [("1", true), ("True", true), ("yes", true), ("0", false), ("", false)] {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
    }
    assert_eq!(from(&[("HF_ENDPOINT", "https://mirror/hf/")]).endpoint, "https://mirror/hf");
    assert_eq!(from(&[("HF_ENDPOINT", "")]).endpoint, "https://huggingface.co");
    assert_eq!(from(&[]).revision, "main");
}

#[test]
fn a_folder_with_a_model_index_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model_index.json"), "{}").unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path, &HubOptions::new("/nowhere"), &mut |_| {}).unwrap(), folder.path());
}

#[test]
fn an_invalid_model_is_a_usage_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("other")).unwrap();
    fs::write(path("other/config.json"), "{}").unwrap();
    fs::write(path("file"), "").unwrap();

    for (model, what) in [
        (path("empty"), "the folder `{}` is empty"),
        (path("other"), "the folder `{}` has no `model_index.json`"),
        (path("file"), "`{}` is a file, not a model folder"),
        (path("missing"), "there is no folder `{}`"),
    ] {
        let error = resolve(&model, &HubOptions::new("/nowhere"), &mut |_| {}).unwrap_err();
        assert_eq!(error.message(), what.replace("{}", &model));
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("hint: "), "{error}");
    }
}

#[test]
fn only_names_that_the_hub_allows_are_ids() {
    let offline = HubOptions { offline: true, ..HubOptions::new("/nowhere") };
    let message = |model: &str| resolve(model, &offline, &mut |_| {}).unwrap_err().message().to_owned();
    for id in ["a/b", "PixArt-alpha/PixArt-XL-2-512x512", "o/n_1.0"] {
        assert!(message(id).contains("is not in the cache"), "{id}");
    }
    let long = format!("o/{}", "n".repeat(100));
    for wrong in [
        "", "gpt2", "a/b/c", "/b", "a/", "./b", "../b", "-a/b", "a/b.", "a/b--c", "a/b..c", "a/b.git",
        "a/b c", &long,
    ] {
        let message = message(wrong);
        let is_none = message.contains("is neither a folder nor a model id")
            || message == format!("there is no folder `{wrong}`");
        assert!(is_none, "{message}");
    }
}

#[test]
fn a_revision_cannot_lead_out_of_the_cache() {
    for revision in ["", "../x", "a/../b", "/etc", "a\\b", ".hidden", "a b"] {
        let options = HubOptions { revision: revision.to_owned(), ..HubOptions::new("/nowhere") };
        let error = resolve("a/b", &options, &mut |_| {}).unwrap_err();
        assert_eq!(error.message(), format!("`{revision}` is not a valid revision"));
    }
}
