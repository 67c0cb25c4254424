//! Bad configurations: a file for each fault; what people are told of it stands beside it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail with them")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use gateway_daemon::config::Config;

/// How many there are: one that is not found is not tested.
const BAD_FILES: usize = 53;

/// What is told of `path`, with its folder left out.
fn told(path: &Path, load: fn(&Path) -> Result<Config, gateway_daemon::config::ConfigError>) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let error = load(path).err().unwrap();
    error.to_string().replace(path.to_str().unwrap(), name)
}

#[test]
fn every_fault_is_told_with_its_file_line_key_and_mend() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("config");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort_unstable();
    assert_eq!(files.len(), BAD_FILES);
    for path in files {
        let told = told(&path, Config::load);
        assert!(!told.contains("hunter2"), "a secret is told: {told}");
        settings.bind(|| insta::assert_snapshot!(path.file_stem().unwrap().to_str().unwrap(), told));
    }
}

/// A configuration that is good as a text, in a folder of its own.
fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    (folder, path)
}

const GOOD: &str = r#"[[issuer]]
name = "corp"
issuer = "https://idp.example.com"
audience = "weir"
algorithms = ["RS256"]

[[agent]]
name = "claude"
user = "nobody"
issuer = "corp"

[[connection]]
name = "orders"
protocol = "postgres"
host = "db.internal"
user = "weir_orders"
"#;

#[test]
fn what_is_good_loads_also_for_root() {
    let (_folder, path) = written(GOOD);
    Config::load_for_root(&path).unwrap();
}

#[test]
fn what_is_wrong_with_the_host_is_told_as_well() {
    let text = GOOD.replace("\"nobody\"", "\"no-such-user\"") + "ca_file = \"/no/such/ca.pem\"\n";
    let (_folder, path) = written(&text);
    insta::assert_snapshot!(told(&path, Config::load_for_root), @r##"
weir.toml:9: agent "claude".user: the user `no-such-user` does not exist; make it with `useradd -r no-such-user`
weir.toml:17: connection "orders".ca_file: /no/such/ca.pem cannot be read: No such file or directory (os error 2); put the file there, or mend the path
"##);
}

#[test]
fn a_configuration_that_others_can_write_is_not_used_by_root() {
    let (_folder, path) = written(GOOD);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    insta::assert_snapshot!(told(&path, Config::load_for_root).replace(path.to_str().unwrap(), "weir.toml"), @"weir.toml: the file can be written by everybody, who could make root run any program: chown root:root weir.toml && chmod go-w weir.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(65_534), None).unwrap();
    insta::assert_snapshot!(told(&path, Config::load_for_root).replace(path.to_str().unwrap(), "weir.toml"), @"weir.toml: the file belongs to user 65534, who could make root run any program: chown root:root weir.toml && chmod go-w weir.toml");
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_its_mend() {
    let (folder, path) = written(GOOD);
    fs::remove_file(&path).unwrap();
    insta::assert_snapshot!(told(&path, Config::load), @"cannot read the configuration weir.toml: No such file or directory (os error 2); write one with `weir init`, or name yours by --config");
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    insta::assert_snapshot!(told(folder.path(), Config::load).replace(name, "FOLDER"), @"cannot read the configuration FOLDER: Is a directory (os error 21); name the file in it by --config");
}
