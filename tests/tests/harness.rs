//! The harness itself: what tests are given is real, and their own.

use std::time::Duration;

use anyhow::Result;
use end_to_end::{Database, Person, Port, Program, Scope, UnixUser, servers, sign, wait_until};

#[test]
fn each_test_has_a_database_of_its_own_that_weir_s_role_reaches_over_checked_tls() -> Result<()> {
    let (one, other) = (Database::create()?, Database::create()?);
    one.sql("INSERT INTO customers VALUES (1000, 'n', 'e', 'c')")?;
    assert_eq!(one.sql("SELECT count(*) FROM customers")?, "101");
    assert_eq!(other.sql("SELECT count(*) FROM customers")?, "100");
    let postgres = &servers()?.postgres;
    let tls = format!("sslmode=verify-full sslrootcert={}", postgres.ca_certificate.display());
    let psql = |password: &str| {
        let address = format!("{} {tls} user={}", one.address()?, postgres.role);
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Program::new([postgres.programs.join("psql")])
            .args(["-XAtd", &address, "-c", ssl])
            .env("PGPASSWORD", password)
            .run()
    };
    assert_eq!(psql(&postgres.password)?.succeeded()?, "t");
    assert!(psql("wrong")?.failed()?.contains("password authentication failed"));
    Ok(())
}

#[test]
fn the_provider_gives_tokens_with_the_groups_of_whom_a_test_enrolled() -> Result<()> {
    let person = Person::enrol("claude", &["developers", "readers"])?;
    let claims = jsonwebtoken::dangerous::insecure_decode::<serde_json::Value>(&person.token()?)?.claims;
    assert_eq!(claims["sub"], person.subject.as_str());
    assert_eq!(claims["aud"], servers()?.idp.audience.as_str());
    assert_eq!(claims["groups"], serde_json::json!(["developers", "readers"]));
    Ok(())
}

#[test]
fn a_token_that_the_harness_signs_is_one_that_the_provider_s_key_checks() -> Result<()> {
    let idp = &servers()?.idp;
    let person = Person::enrol("codex", &["readers"])?;
    let short = person.short_token(Duration::from_secs(5))?;
    let public = std::fs::read(idp.key.with_file_name("rsa_public.pem"))?;
    let key = jsonwebtoken::DecodingKey::from_rsa_pem(&public)?;
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    rules.set_audience(&[&idp.audience]);
    rules.leeway = 0;
    let token = jsonwebtoken::decode::<serde_json::Value>(&short, &key, &rules)?;
    assert_eq!(token.header.kid.as_deref(), Some(idp.key_id.as_str()));
    let mut expired = person.claims(Duration::ZERO)?;
    expired["exp"] = 1.into();
    assert!(jsonwebtoken::decode::<serde_json::Value>(&sign(&expired)?, &key, &rules).is_err());
    Ok(())
}

#[test]
fn what_runs_in_a_scope_is_in_its_cgroup_and_ends_with_it() -> Result<()> {
    let scope = Scope::create()?;
    let user = UnixUser::claim()?;
    let seen =
        scope.program_as(&user.name, "agents/a", ["sh", "-c", "id -un; cat /proc/self/cgroup"])?.run()?.succeeded()?;
    assert!(seen.starts_with(&format!("{}\n", user.name)), "{seen}");
    assert!(seen.ends_with(&format!("0::{}/agents/a", scope.name)), "{seen}");
    let mut sleeper = scope.program("b", ["sleep", "600"])?.into_command().spawn()?;
    let procs = scope.path.join("b/cgroup.procs");
    let inside = || Ok(std::fs::read_to_string(&procs)?.contains(&sleeper.id().to_string()).then_some(()));
    wait_until("the sleeper is inside", Duration::from_secs(10), inside)?;
    let path = scope.path.clone();
    // It is this process's child, and gone from its cgroup only once it is reaped.
    let reaper = std::thread::spawn(move || sleeper.wait());
    drop(scope);
    assert!(!reaper.join().map_err(|_| anyhow::anyhow!("the reaper panicked"))??.success());
    assert!(!path.exists());
    Ok(())
}

#[test]
fn users_and_ports_are_claimed_once() -> Result<()> {
    let (one, other) = (UnixUser::claim()?, UnixUser::claim()?);
    assert_ne!(one.name, other.name);
    let (one, other) = (Port::claim()?, Port::claim()?);
    assert_ne!(one.number, other.number);
    assert!(one.number < 1024 && other.number < 1024);
    Ok(())
}
