use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn file(folder: &tempfile::TempDir, bytes: &[u8], mode: u32) -> PathBuf {
    let path = folder.path().join("secret");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn shell(script: &str) -> SecretRef {
    SecretRef::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

async fn password(reference: &SecretRef) -> Result<String, String> {
    let credential = reference.resolve().await.map_err(|error| error.to_string())?;
    Ok(credential.password.expose_secret().to_owned())
}

#[test]
fn a_reference_has_exactly_one_key_that_is_known() {
    let parse = |text: &str| serde_json::from_str::<SecretRef>(text);
    assert_eq!(parse(r#"{"file":"/a"}"#).unwrap(), SecretRef::File("/a".into()));
    assert_eq!(parse(r#"{"env":"A"}"#).unwrap(), SecretRef::Env("A".into()));
    assert_eq!(parse(r#"{"credential":"a"}"#).unwrap(), SecretRef::Credential("a".into()));
    assert_eq!(parse(r#"{"command":["/a","b"]}"#).unwrap(), SecretRef::Command(vec!["/a".into(), "b".into()]));
    for wrong in [r#"{}"#, r#"{"file":"/a","env":"A"}"#, r#"{"password":"p"}"#, r#""inline""#, r#"{"file":1}"#] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(toml::from_str::<std::collections::HashMap<String, SecretRef>>("p = { file = '/a', env = 'A' }").is_err());
    assert!(toml::from_str::<std::collections::HashMap<String, SecretRef>>("p = { file = '/a' }").is_ok());
}

#[test]
fn a_reference_that_cannot_work_fails_when_it_is_checked() {
    for wrong in [
        SecretRef::Command(vec![]),
        SecretRef::Command(vec!["vault".into()]),
        SecretRef::Credential("../shadow".into()),
        SecretRef::Credential("..".into()),
        SecretRef::Credential(String::new()),
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
    assert!(SecretRef::Command(vec!["/usr/bin/vault".into()]).check().is_ok());
}

#[tokio::test]
async fn a_file_gives_its_text_without_the_last_newline() {
    for (bytes, expected) in [("s3cret", "s3cret"), ("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), ("a\n\n", "a\n")]
    {
        let folder = folder();
        let path = file(&folder, bytes.as_bytes(), 0o400);
        assert_eq!(password(&SecretRef::File(path)).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_file_that_holds_no_password_is_refused_with_its_fault() {
    let long = vec![b'x'; MAX_SECRET + 1];
    let rows: [(&[u8], &str); 4] = [
        (b"\n", "an empty password"),
        (b"a\0b", "a password with a NUL byte"),
        (b"\xff", "bytes that are not UTF-8"),
        (&long, "more than 65536 bytes"),
    ];
    for (bytes, fault) in rows {
        let folder = folder();
        let reference = SecretRef::File(file(&folder, bytes, 0o400));
        let error = password(&reference).await.unwrap_err();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn only_files_closed_to_others_are_private() {
    let own = rustix::process::geteuid().as_raw();
    for (owner, group, mode, private) in [
        (0, 0, 0o400, true),
        (own, 5, 0o600, true),
        (0, 0, 0o440, true),
        (0, 5, 0o440, false),
        (0, 0, 0o460, false),
        (0, 0, 0o604, false),
        (0, 0, 0o644, false),
        (0, 0, 0o401, false),
        (own + 77, 0, 0o400, false),
    ] {
        assert_eq!(is_private(owner, group, mode), private, "{owner} {group} {mode:o}");
    }
}

#[tokio::test]
async fn a_file_open_to_others_is_refused_also_behind_a_link() {
    let folder = folder();
    let path = file(&folder, b"s3cret", 0o644);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = password(&SecretRef::File(link.clone())).await.unwrap_err();
    assert!(error.contains("is open to others") && error.contains("mode 0644"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(password(&SecretRef::File(link)).await.unwrap(), "s3cret");
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_does_not_make_the_daemon_wait() {
    let folder = folder();
    let path = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(SecretRef::File(path).resolve().await, Err(SecretError::NotAFile { .. })));
}

#[tokio::test]
async fn the_environment_and_systemd_are_asked_by_name() {
    assert!(password(&SecretRef::Env("PATH".into())).await.unwrap().contains("/bin"));
    assert!(matches!(SecretRef::Env("WEIR_NO_SUCH".into()).resolve().await, Err(SecretError::NoVariable { .. })));
    assert!(matches!(credential_path(None, "db"), Err(SecretError::NoCredentials { .. })));
    assert_eq!(
        credential_path(Some("/run/credentials/weir".into()), "db").unwrap(),
        Path::new("/run/credentials/weir/db")
    );
}

#[tokio::test]
async fn a_command_gives_user_password_and_expiry() {
    let reference = shell(r#"echo '{"user":"u","password":"p","expiry":"2999-01-02T03:04:05Z"}'"#);
    let credential = reference.resolve().await.unwrap();
    assert_eq!(credential.user.as_deref(), Some("u"));
    assert_eq!(credential.password.expose_secret(), "p");
    let left = credential.expires.unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(900 * 365 * 24 * 3600));
}

#[tokio::test]
async fn a_command_sees_nothing_of_the_daemons_environment() {
    let reference = shell(r#"printf '{"password":"%s"}' "${HOME-none}${CARGO_MANIFEST_DIR-none}$(pwd)""#);
    assert_eq!(password(&reference).await.unwrap(), "nonenone/");
}

#[tokio::test]
async fn a_command_that_misbehaves_is_refused_without_its_output() {
    for (script, fault) in [
        ("echo hunter2", "isn't a JSON object"),
        (r#"echo '{"password":"hunter2","extra":1}'"#, "isn't a JSON object"),
        (r#"echo '{"user":"hunter2"}'"#, "isn't a JSON object"),
        (r#"echo '{"password":["hunter2"]}'"#, "isn't a JSON object"),
        (r#"echo '{"password":"hunter2"}{}'"#, "isn't a JSON object"),
        (r#"echo '{"password":"hunter2"}'; exit 3"#, "exit status: 3"),
        (r#"echo '{"password":"hunter2","expiry":"tomorrow"}'"#, "not an RFC 3339 time"),
        (r#"echo '{"password":"hunter2","expiry":"2001-01-01T00:00:00Z"}'"#, "has expired"),
        ("while :; do echo hunter2; done", "more than 65536 bytes"),
    ] {
        let error = shell(script).resolve().await.unwrap_err();
        let (shown, debug) = (error.to_string(), format!("{error:?}"));
        assert!(shown.contains(fault), "{script}: {shown}");
        assert!(!shown.contains("hunter2") && !debug.contains("hunter2"), "{script}: {shown} {debug}");
    }
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_all_its_children() {
    let folder = folder();
    let pid = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let SecretRef::Command(argv) = shell(&script) else { unreachable!() };
    let error = shell(&script).run(&argv, Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, SecretError::Slow { .. }), "{error}");
    let child = fs::read_to_string(pid).unwrap();
    // An orphan's end is its new parent's to collect: dead is dead.
    let ended = || match fs::read_to_string(format!("/proc/{}/stat", child.trim())) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    };
    while !ended() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn debug_shows_no_password() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(SecretRef::File(file(&folder, b"hunter2", 0o400))));
    let credential = source.current().await.unwrap();
    assert!(!format!("{credential:?} {source:?}").contains("hunter2"));
}

/// A command that counts its runs in a file and gives the count as password.
fn counting(folder: &tempfile::TempDir, rest: &str) -> SecretRef {
    let count = folder.path().join("count");
    shell(&format!(
        "echo >> {0}; n=$(wc -l < {0}); {rest} printf '{{\"password\":\"%s\",\"expiry\":\"%s\"}}' $n $(date -u -d '+5 seconds' +%FT%T.%NZ)",
        count.display()
    ))
}

#[tokio::test]
async fn however_many_ask_the_credential_is_fetched_once() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(counting(&folder, "sleep 0.2;")));
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let source = Arc::clone(&source);
            tokio::spawn(async move { source.current().await.unwrap().password.expose_secret().to_owned() })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.unwrap(), "1");
    }
}

#[tokio::test]
async fn a_credential_is_renewed_before_it_ends_and_outlives_a_failed_renewal() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(counting(&folder, "[ $n = 2 ] && exit 1;")));
    let first = source.current().await.unwrap();
    let ends = first.expires.unwrap();
    // The second run fails, so the first stays in use; the third renews it.
    let renewed = loop {
        let now = source.current().await.expect("the first is still valid or the second is there");
        if now.password.expose_secret() != "1" {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(renewed.password.expose_secret(), "3");
    assert!(SystemTime::now() < ends, "renewed only after its end");
}

#[tokio::test]
async fn a_refused_credential_is_fetched_again_at_once() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(SecretRef::File(file(&folder, b"old", 0o600))));
    let old = source.current().await.unwrap();
    assert!(source.instead_of(&old).await.unwrap().is_none(), "nothing has changed");
    let old = source.current().await.unwrap();
    fs::write(folder.path().join("secret"), "new").unwrap();
    assert_eq!(source.current().await.unwrap().password.expose_secret(), "old");
    let new = source.instead_of(&old).await.unwrap().unwrap();
    assert_eq!(new.password.expose_secret(), "new");
    // Late: the one that took its place is given, and stays.
    assert!(Arc::ptr_eq(&source.instead_of(&old).await.unwrap().unwrap(), &new));
    assert!(Arc::ptr_eq(&source.current().await.unwrap(), &new));
    fs::remove_file(folder.path().join("secret")).unwrap();
    assert!(source.instead_of(&new).await.is_err());
    assert!(source.current().await.is_err(), "what was refused and is withdrawn is not used");
}

#[tokio::test]
async fn a_refused_password_does_not_make_a_storm_of_commands() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(counting(&folder, "")));
    let mut refused = source.current().await.unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..100 {
        refused = source.instead_of(&refused).await.unwrap().unwrap_or(refused);
    }
    let runs = fs::read_to_string(folder.path().join("count")).unwrap().lines().count();
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(runs <= most, "{runs} runs in {:?}", begun.elapsed());
}

#[tokio::test]
async fn nobody_waits_for_a_renewal_while_the_last_credential_is_valid() {
    let folder = folder();
    // The second run takes until after the first credential's renewal is due, and its end.
    let source = Arc::new(CredentialSource::new(counting(&folder, "[ $n = 2 ] && sleep 4;")));
    let first = source.current().await.unwrap();
    let ends = first.expires.unwrap();
    let mut longest = Duration::ZERO;
    while SystemTime::now() + Duration::from_millis(500) < ends {
        let asked = std::time::Instant::now();
        let given = source.current().await.unwrap();
        longest = longest.max(asked.elapsed());
        assert!(given.expires.unwrap() > SystemTime::now());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let runs = fs::read_to_string(folder.path().join("count")).unwrap().lines().count();
    assert_eq!(runs, 2, "the renewal has begun");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

#[tokio::test]
async fn an_expired_credential_is_never_given_and_failures_are_tried_again_ever_more_seldom() {
    let folder = folder();
    let source = Arc::new(CredentialSource::new(counting(&folder, "[ $n -gt 1 ] && exit 1;")));
    let first = source.current().await.unwrap();
    let ends = first.expires.unwrap();
    let begun = tokio::time::Instant::now();
    let (mut given, mut refused) = (0, 0);
    while begun.elapsed() < Duration::from_secs(8) {
        let asked = SystemTime::now();
        match source.current().await {
            Ok(credential) => {
                assert!(asked < ends && Arc::ptr_eq(&credential, &first));
                given += 1;
            }
            Err(error) => {
                assert!(SystemTime::now() >= ends, "{error}");
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(given > 0 && refused > 0);
    // At 2.5 s or a little before, then 1, 2, 4 seconds later.
    let runs = fs::read_to_string(folder.path().join("count")).unwrap().lines().count();
    assert!((3..=5).contains(&runs), "{runs} runs");
}
