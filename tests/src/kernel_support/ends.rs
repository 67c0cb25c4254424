//! What a connect may reach: the server itself, or Weir's listener.

use std::{
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use gateway_daemon::{
    accept::{Incoming, Listener, PortKeeping},
    redirect::Kernel,
};
use tokio::{io::AsyncWriteExt as _, sync::oneshot};

use super::{Answer, PATIENCE};

/// A server at a protected address. Whoever reaches it, and may not, got around.
pub struct Server {
    listener: TcpListener,
    reached: Arc<AtomicUsize>,
}

impl Server {
    /// Serves an address until it is dropped.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("a server at {address}"))?;
        let reached = Arc::new(AtomicUsize::new(0));
        let (accepting, counter) = (listener.try_clone()?, Arc::clone(&reached));
        thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                counter.fetch_add(1, Ordering::SeqCst);
                // Whoever connected may be gone by now.
                let _ = stream.write_all(b"\"Server\"\n");
                let _ = stream.shutdown(Shutdown::Write);
                // A socket that is closed over what it has not read is reset, and its answer lost.
                thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
            }
        });
        Ok(Self { listener, reached })
    }

    /// Connections so far.
    pub fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the listening, and the thread's accept with it.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

/// Weir's listener, in a thread of its own, telling each connection what it knows of it.
pub struct Front {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Front {
    /// Listens.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound.
    pub fn start(kernel: &Kernel) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            Listener::bind(kernel, PortKeeping::Privileged)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    result = serve(&listener) => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the listener ended: {error:#}");
        }
    }
}

async fn serve(listener: &Listener) -> Result<()> {
    loop {
        let (mut stream, answer) = match listener.accept().await? {
            Incoming::Straight { stream, .. } => (stream, Answer::Straight),
            Incoming::Accepted(accepted) => (
                accepted.stream,
                Answer::Accepted {
                    origin: accepted.origin,
                    connection: accepted.connection,
                    cgroup: accepted.cgroup.get(),
                    pid: accepted.pid,
                    uid: accepted.uid,
                    peer: accepted.peer,
                },
            ),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        tokio::spawn(async move {
            // Whoever connected may be gone by now. Closing before it has closed could reset the connection under it.
            let _ = stream.write_all(&line).await;
            let _ = stream.shutdown().await;
            let _ = tokio::time::timeout(PATIENCE, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
        });
    }
}
