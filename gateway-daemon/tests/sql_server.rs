//! `sql` beside a real PostgreSQL: the catalogue's queries run there, and names mean what the server says they mean.
//! Starts a cluster of its own, so it must run as root, with PostgreSQL's binaries installed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use gateway_daemon::sql::{Access, Action, Catalog, Object, PARSE_STACK_BYTES, read};
use tempfile::TempDir;

/// A cluster that ends with the test.
struct Server {
    folder: TempDir,
    bin: PathBuf,
}

impl Server {
    fn start() -> Self {
        let bin = newest_binaries();
        let folder = tempfile::Builder::new().prefix("weir-sql").tempdir().unwrap();
        let postgres = uid_of("postgres");
        chown(folder.path(), Some(postgres), Some(postgres)).unwrap();
        let server = Self { folder, bin };
        let data = server.data();
        server.run("initdb", &["-D", &data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]);
        let options =
            format!("-c listen_addresses= -c fsync=off -c unix_socket_directories={}", server.socket().display());
        let log = server.folder.path().join("log").display().to_string();
        server.run("pg_ctl", &["-D", &data, "-o", &options, "-l", &log, "-w", "start"]);
        server
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// Runs one of the server's programs as its user.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let uid = uid_of("postgres").to_string();
        let output = Command::new("setpriv")
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--"])
            .arg(self.bin.join(program))
            .args(arguments)
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The rows of a statement, as `user` gets them.
    fn query(&self, user: &str, database: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        let socket = self.socket().display().to_string();
        let output = self.run(
            "psql",
            &[
                "-X",
                "-q",
                "-h",
                &socket,
                "-U",
                user,
                "-d",
                database,
                "-At",
                "-F",
                "\u{1f}",
                "-R",
                "\u{1e}",
                "-P",
                "null=\u{1}",
                "-c",
                sql,
            ],
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = text.trim_end_matches('\n').split('\u{1e}').filter(|row| !row.is_empty());
        let column = |column: &str| (column != "\u{1}").then(|| column.to_owned());
        rows.map(|row| row.split('\u{1f}').map(column).collect()).collect()
    }

    fn catalog(&self, user: &str) -> Catalog {
        let answers = Catalog::QUERIES.iter().map(|query| self.query(user, "weirtest", query)).collect();
        Catalog::from_rows(answers).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that failed must not leave a server behind; waits, so that its folder can go.
        let data = self.data();
        let stop = || self.run("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "stop"]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Path::new(&data).join("postmaster.pid").exists() && Instant::now() < deadline {
            stop();
        }
    }
}

fn newest_binaries() -> PathBuf {
    let version = |path: &PathBuf| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's binaries are installed");
    let bins = versions.map(|entry| entry.unwrap().path().join("bin")).filter(|bin| bin.join("initdb").exists());
    bins.max_by_key(version).expect("PostgreSQL's binaries are installed")
}

/// The number of a user, from the password file.
fn uid_of(user: &str) -> u32 {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.split(':').next() == Some(user)).expect("the user is there");
    line.split(':').nth(2).unwrap().parse().unwrap()
}

/// The relations that a SELECT reads.
fn relations(accesses: &[Access]) -> Vec<String> {
    let of = |access: &Access| match (&access.action, &access.object) {
        (Action::Select, Object::Relation { schema, name }) => Some(format!("{schema}.{name}")),
        _ => None,
    };
    accesses.iter().filter_map(of).collect()
}

#[test]
fn names_mean_what_the_server_says() {
    let test = || {
        let server = Server::start();
        server.query("postgres", "postgres", "CREATE DATABASE weirtest");
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpora/postgres/schema.sql");
        let copy = server.folder.path().join("schema.sql");
        fs::write(&copy, fs::read_to_string(schema).unwrap()).unwrap();
        let socket = server.socket().display().to_string();
        let file = copy.display().to_string();
        server.run(
            "psql",
            &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", &socket, "-U", "postgres", "-d", "weirtest", "-f", &file],
        );
        // A schema of the role's own stands first on the default path, and hides one table.
        server.query("app", "weirtest", "CREATE SCHEMA app CREATE TABLE settings (key text)");
        server.query("app", "weirtest", "CREATE SCHEMA late CREATE TABLE pg_class (x int)");

        let catalog = server.catalog("app");
        resolves_as_the_server(&server, &catalog);
        knows_the_columns_of_the_server(&server, &catalog);
        sees_what_changed(&server, &catalog);
        reads_the_catalogues_own_queries(&catalog);
    };
    std::thread::Builder::new().stack_size(PARSE_STACK_BYTES).spawn(test).unwrap().join().unwrap();
}

fn resolves_as_the_server(server: &Server, catalog: &Catalog) {
    let long = "x".repeat(70);
    server.query("app", "weirtest", &format!("CREATE TABLE late.{long} (a int)"));
    let before = catalog.version();
    let catalog = server.catalog("app");
    assert_ne!(before, catalog.version(), "a table that was made is another version");
    let paths = [
        "",
        "public",
        "archive, public",
        "\"$user\", public",
        "\"$user\"",
        "late, pg_catalog, public",
        "PUBLIC, \"Odd Schema\"",
        "nowhere, sandbox",
        "public, archive, sandbox, remote",
        "information_schema, public",
        "pg_temp, public",
    ];
    let names = [
        "customers",
        "CUSTOMERS",
        "\"Customers\"",
        "settings",
        "orders",
        "pg_class",
        "scratch",
        "tables",
        "\"Order \"\"Log\"\"\"",
        "U&\"cust\\006Fmers\"",
        "archive.customers",
        "late.pg_class",
        "pg_catalog.pg_class",
        &long,
        &format!("late.{long}"),
    ];
    let answers: Vec<_> = Catalog::QUERIES.iter().map(|query| server.query("app", "weirtest", query)).collect();
    let mut resolved = 0;
    for path in paths {
        // The path stands alone: a session whose default it is.
        let mut answers = answers.clone();
        answers[0][0][0] = Some(path.to_owned());
        let session = Catalog::from_rows(answers).unwrap();
        for name in names {
            // What the name means to the server, under that path.
            let literal = name.replace('\'', "''");
            let asked = if name.starts_with("U&") { "customers".to_owned() } else { literal };
            let set = if path.is_empty() { "''".to_owned() } else { path.to_owned() };
            let rows = server.query(
                "app",
                "weirtest",
                &format!(
                    "SET search_path = {set}; SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_catalog.to_regclass('{asked}')"
                ),
            );
            let Some(meant) = rows.first().and_then(|row| row[0].clone()) else { continue };
            let reading = read(&format!("SELECT count(*) FROM {name}"), &catalog, &session.session_names()).unwrap();
            let read = &reading.statements[0];
            let read_of = relations(&read.accesses);
            let refused = read.accesses.iter().any(|access| access.action == Action::Unknown);
            assert!(
                read_of == [meant.clone()] || refused,
                "{name} under `{path}`: {read_of:?}, the server means {meant}"
            );
            resolved += 1;
        }
    }
    assert!(resolved > 60, "{resolved} names were found on the server");
}

fn knows_the_columns_of_the_server(server: &Server, catalog: &Catalog) {
    server.query("app", "weirtest", "ALTER TABLE public.products DROP COLUMN sku");
    let catalog_after = server.catalog("app");
    let columns = |catalog: &Catalog| catalog.relation("public", "products").unwrap().columns.join(",");
    assert_eq!(columns(catalog), "id,sku,title,price,attrs,tags");
    assert_eq!(columns(&catalog_after), "id,title,price,attrs,tags", "a dropped column leaves no gap");
    // An alias list counts as the server counts it.
    let reading = read("SELECT b FROM products AS p(a, b)", &catalog_after, &catalog_after.session_names()).unwrap();
    assert!(format!("{:?}", reading.statements[0].accesses).contains("\"title\""));
}

fn sees_what_changed(server: &Server, catalog: &Catalog) {
    let reads = |catalog: &Catalog, sql: &str| {
        let reading = read(sql, catalog, &catalog.session_names()).unwrap();
        reading.statements[0]
            .accesses
            .iter()
            .map(|access| format!("{} {}", access.action.name(), access.object))
            .collect::<Vec<_>>()
    };
    let statement = "SELECT upper(name), id + 1 FROM public.customers";
    assert_eq!(reads(catalog, statement), ["select public.customers"]);
    server.query(
        "app",
        "weirtest",
        "CREATE FUNCTION public.upper(public.customers) RETURNS text LANGUAGE sql AS 'SELECT ''x'''",
    );
    server.query("app", "weirtest", "CREATE FUNCTION public.plus(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1'");
    server.query(
        "app",
        "weirtest",
        "CREATE OPERATOR public.+ (LEFTARG = int, RIGHTARG = text, FUNCTION = public.plus)",
    );
    assert_eq!(
        reads(&server.catalog("app"), statement),
        ["select public.customers", "call public.plus", "call public.upper"],
        "a function and an operator of the same name may be meant"
    );
}

/// What the daemon asks is itself a read of catalogues that anyone may read.
fn reads_the_catalogues_own_queries(catalog: &Catalog) {
    for query in Catalog::QUERIES {
        let reading = read(query, catalog, &catalog.session_names()).unwrap();
        let statement = &reading.statements[0];
        assert!(statement.reasons.is_empty(), "{query}: {:?}", statement.reasons);
    }
}
