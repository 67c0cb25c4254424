//! What Rust programs do with a database by tokio-postgres. Each part is a program of its own, named by the argument;
//! where to connect is in libpq's variables.

use std::{
    env,
    future::{Future, poll_fn},
    io::Cursor,
    pin::pin,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, TryStreamExt as _, future::join_all};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, NoTls, SimpleQueryMessage,
    binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream},
    types::{ToSql, Type},
};

/// How long any part may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let part = env::args().nth(1).context("which part?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, play(&part)).await? })
}

async fn play(part: &str) -> Result<()> {
    match part {
        "types" => types(connect().await?).await,
        "statements" => statements(connect().await?).await,
        "transactions" => transactions(connect().await?).await,
        "portals" => portals(connect().await?).await,
        "copies" => copies(connect().await?).await,
        "pipelines" => pipelines(connect().await?).await,
        "cancel" => cancel(connect().await?).await,
        _ => bail!("there is no part {part}"),
    }
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("{name} isn't set"))
}

/// Connects. Notices and notifications are printed as they come.
async fn connect() -> Result<Client> {
    let mut config = Config::new();
    config.host(variable("PGHOST")?).port(variable("PGPORT")?.parse()?);
    config.dbname(variable("PGDATABASE")?).user(variable("PGUSER")?);
    if let Ok(password) = env::var("PGPASSWORD") {
        config.password(password);
    }
    let (client, mut connection) = config.connect(NoTls).await?;
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                AsyncMessage::Notice(notice) => println!("notice: {}", notice.message()),
                AsyncMessage::Notification(heard) => println!("heard: {} {}", heard.channel(), heard.payload()),
                _ => {}
            }
        }
    });
    Ok(client)
}

/// The SQLSTATE of what must fail.
async fn fails<T>(work: impl Future<Output = Result<T, Error>>) -> Result<()> {
    let Err(error) = work.await else { bail!("no error") };
    println!("{}", error.code().map_or("no code", |code| code.code()));
    Ok(())
}

async fn types(client: Client) -> Result<()> {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let values: [(&str, &(dyn ToSql + Sync)); 12] = [
        ("bool", &true),
        ("\"char\"", &7i8),
        ("int2", &-3i16),
        ("int4", &i32::MIN),
        ("int8", &i64::MAX),
        ("float4", &1.5f32),
        ("float8", &f64::NEG_INFINITY),
        ("text", &"ä€𝄞"),
        ("bytea", &b"\0\xff".as_slice()),
        ("timestamptz", &then),
        ("int4[]", &vec![Some(1), None]),
        ("text[]", &vec!["a", "b\"{}"]),
    ];
    for (name, value) in values {
        client.query_one(&format!("SELECT $1::{name}, NULL::{name}"), &[value]).await?;
    }
    client.query_one("SELECT $1::int, $2::text", &[&None::<i32>, &None::<&str>]).await?;
    // Types that it has to ask the catalogue for.
    for name in ["mood", "percentage", "pair", "mood[]", "tstzrange"] {
        let statement = client.prepare(&format!("SELECT NULL::{name}, $1::{name}")).await?;
        println!("{name}: {:?}", statement.columns().iter().map(|column| column.type_().name()).collect::<Vec<_>>());
    }
    let statement = client.prepare_typed("SELECT $1, $2", &[Type::INT8, Type::TEXT]).await?;
    client.query_one(&statement, &[&1i64, &"typed"]).await?;
    client.query_typed("SELECT $1, id FROM everything", &[(&"unnamed", Type::TEXT)]).await?;
    client.query("SELECT id, t, b, at FROM everything ORDER BY id", &[]).await?;
    Ok(())
}

async fn statements(client: Client) -> Result<()> {
    client.batch_execute("").await?;
    client.batch_execute("SELECT 1; SET TimeZone = 'Asia/Tokyo'; SELECT 2").await?;
    for message in
        client.simple_query("SELECT 1, NULL; UPDATE everything SET t = t WHERE id = 1; SHOW TimeZone").await?
    {
        match message {
            SimpleQueryMessage::Row(row) => println!("row {:?}", row.get(0)),
            SimpleQueryMessage::CommandComplete(rows) => println!("{rows} rows"),
            _ => {}
        }
    }
    for wrong in ["SELECT 1/0", "SELECT nothing FROM everything", "SELECT * FROM nowhere", "SELECT 'x'::int"] {
        fails(client.query(wrong, &[])).await?;
        fails(client.simple_query(wrong)).await?;
    }
    fails(client.execute("INSERT INTO everything (id) VALUES ($1)", &[&1])).await?;
    println!("{}", client.execute("UPDATE everything SET t = t WHERE id = ANY($1)", &[&vec![1, 2, 3]]).await?);
    client.batch_execute("DO $$ BEGIN RAISE NOTICE 'noticed'; END $$").await?;
    client.batch_execute("LISTEN news; NOTIFY news, 'to myself'").await?;
    let large = "ü".repeat(1_000_000);
    let row = client.query_one("SELECT $1::text || 'x', length($1)", &[&large]).await?;
    ensure!(row.try_get::<_, &str>(0)?.len() == large.len() + 1, "the text was cut");
    println!("{}", client.query("SELECT n, md5(n::text) FROM generate_series(1, 20000) n", &[]).await?.len());
    Ok(())
}

async fn transactions(mut client: Client) -> Result<()> {
    let mut outer = client.transaction().await?;
    outer.execute("UPDATE everything SET t = 'outer' WHERE id = 1", &[]).await?;
    let inner = outer.transaction().await?;
    fails(inner.execute("INSERT INTO everything (id) VALUES (1)", &[])).await?;
    fails(inner.query("SELECT 1", &[])).await?;
    inner.rollback().await?;
    let named = outer.savepoint("named").await?;
    named.execute("UPDATE everything SET t = 'named' WHERE id = 2", &[]).await?;
    named.commit().await?;
    println!("{}", outer.query("SELECT id, t FROM everything ORDER BY id", &[]).await?.len());
    outer.rollback().await?;
    let read_only = client.build_transaction().read_only(true).start().await?;
    fails(read_only.execute("UPDATE everything SET t = 'x'", &[])).await?;
    fails(read_only.query("SELECT 1", &[])).await?;
    // The commit of a transaction that failed.
    read_only.commit().await?;
    Ok(())
}

async fn portals(mut client: Client) -> Result<()> {
    let transaction = client.transaction().await?;
    let statement = transaction.prepare("SELECT n, n::text FROM generate_series(1, $1) n").await?;
    let (one, two) = (transaction.bind(&statement, &[&7]).await?, transaction.bind(&statement, &[&5]).await?);
    for (portal, rows) in [(&one, 3), (&two, 2), (&one, 3), (&two, 0), (&one, 3), (&one, 1)] {
        println!("{}", transaction.query_portal(portal, rows).await?.len());
    }
    drop(one);
    transaction.commit().await?;
    Ok(())
}

async fn copies(mut client: Client) -> Result<()> {
    for options in ["", "(FORMAT csv, HEADER)", "(FORMAT binary)"] {
        let parts = client.copy_out(&format!("COPY everything TO STDOUT {options}")).await?;
        println!("{}", parts.try_fold(0, async |sum, part| Ok(sum + part.len())).await?);
    }
    let statement = "COPY (SELECT id, t FROM everything ORDER BY id) TO STDOUT (FORMAT binary)";
    let rows = BinaryCopyOutStream::new(client.copy_out(statement).await?, &[Type::INT4, Type::TEXT]);
    println!("{}", rows.try_collect::<Vec<_>>().await?.len());
    let transaction = client.transaction().await?;
    let mut sink = pin!(transaction.copy_in::<_, Cursor<String>>("COPY everything (id, t) FROM STDIN").await?);
    for n in 100..3000 {
        sink.send(Cursor::new(format!("{n}\tcopied {n}\n"))).await?;
    }
    println!("{}", sink.finish().await?);
    let sink = transaction.copy_in("COPY everything (id, t) FROM STDIN (FORMAT binary)").await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]));
    for n in 3000..3100 {
        writer.as_mut().write(&[&n, &None::<&str>]).await?;
    }
    println!("{}", writer.finish().await?);
    transaction.rollback().await?;
    let mut sink = pin!(client.copy_in::<_, &[u8]>("COPY everything (id, t) FROM STDIN").await?);
    sink.send(b"no number\tx\n").await?;
    fails(sink.finish()).await?;
    // Given up: it sends CopyFail.
    let sink = client.copy_in::<_, &[u8]>("COPY everything (id, t) FROM STDIN").await?;
    drop(sink);
    println!("{}", client.query("SELECT id FROM everything", &[]).await?.len());
    fails(client.copy_out("COPY nowhere TO STDOUT")).await
}

async fn pipelines(client: Client) -> Result<()> {
    let statement = client.prepare("SELECT 10 / $1::int").await?;
    let statement = &statement;
    let client = &client;
    let divide = async |by: i32| client.query_one(statement, &[&by]).await;
    let answers = join_all([1, 2, 0, 5, 0, 10].map(divide)).await;
    println!("{:?}", answers.iter().map(Result::is_ok).collect::<Vec<_>>());
    let (one, two, three, four) = tokio::join!(
        client.prepare("SELECT 'one'"),
        client.simple_query("SELECT 1/0"),
        client.query("SELECT t FROM everything WHERE id = $1", &[&1]),
        client.batch_execute("SELECT 4; SELECT 5"),
    );
    println!("{} {} {} {}", one.is_ok(), two.is_ok(), three.is_ok(), four.is_ok());
    let many = join_all((1..300).map(divide)).await;
    println!("{}", many.iter().filter(|answer| answer.is_ok()).count());
    Ok(())
}

/// Waits, in one statement, until the other session runs what is to be cancelled.
const WAIT: &str = "DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'active' AND datname = current_database()
                      AND query = 'SELECT pg_sleep(600)') LOOP
        PERFORM pg_sleep(0.01); PERFORM pg_stat_clear_snapshot();
    END LOOP; END $$";

async fn cancel(client: Client) -> Result<()> {
    let other = connect().await?;
    let token = client.cancel_token();
    let when_it_runs = async {
        other.batch_execute(WAIT).await?;
        token.cancel_query(NoTls).await
    };
    let (cancelled, sent) = tokio::join!(client.batch_execute("SELECT pg_sleep(600)"), when_it_runs);
    sent?;
    fails(async { cancelled }).await?;
    println!("{}", client.query("SELECT 'goes on'", &[]).await?.len());
    Ok(())
}
