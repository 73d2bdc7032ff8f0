//! A temporary directory and the process that works in it. Both go when we go, also when we are killed.

use std::env;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;

/// Waits for the end of its input, which comes when we close it or die, then stops the process and removes the directory.
/// `keep` on its input makes it go away without doing either. The process is known by the file `pid`, and trusted to be
/// ours only while it works inside the directory, because process ids are used again.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r word && [ "$word" = keep ] && exit 0
dir=$1
signal=$2
ours() {
    pid=$(cat "$dir/pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    case "$(readlink "/proc/$pid/cwd" 2>/dev/null)" in "$dir" | "$dir"/*) return 0 ;; *) return 1 ;; esac
}
ours && kill -s "$signal" "$pid" 2>/dev/null
tries=0
while ours; do
    tries=$((tries + 1))
    [ $tries -ge 100 ] && kill -KILL "$pid" 2>/dev/null && break
    sleep 0.05
done
cd / && rm -rf "$dir"
"#;

/// Below the range that the kernel gives to outgoing connections (32768 and up), which could take a port from us while
/// its server restarts.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
const PORT_ATTEMPTS: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// A directory of its own under the system's temporary directory, owned by the unprivileged user that servers run as. At
/// most one process at a time works in it. Dropping stops that process and removes everything.
#[derive(Debug)]
pub struct Workspace {
    dir: PathBuf,
    /// Whom the process runs as; `None` for whoever we are.
    user: Option<User>,
    /// What ends the process when the workspace goes. PostgreSQL and PgBouncer take `QUIT` as "now, but leave no shared
    /// memory behind".
    last_signal: &'static str,
    child: Option<Child>,
    watchdog: Option<Child>,
}

impl Workspace {
    /// `kind` becomes part of the directory's name.
    pub fn create(kind: &str) -> Result<Self, Error> {
        Self::create_for(kind, unprivileged_user()?, "QUIT")
    }

    /// The same for a process that runs as whoever we are, and that may simply be killed: our own daemon, a broker.
    pub fn create_as_self(kind: &str) -> Result<Self, Error> {
        Self::create_for(kind, None, "KILL")
    }

    fn create_for(kind: &str, user: Option<User>, last_signal: &'static str) -> Result<Self, Error> {
        let dir = fresh_dir(kind)?;
        if let Some(user) = user {
            chown(&dir, Some(user.uid), Some(user.gid)).map_err(Error::file("change the owner of", &dir))?;
        }
        let mut workspace = Self { dir, user, last_signal, child: None, watchdog: None };
        let mut watchdog = workspace.command("sh");
        watchdog
            .args(["-c", WATCHDOG, "changeover-watchdog"])
            .arg(&workspace.dir)
            .arg(last_signal)
            .current_dir("/")
            .stdin(Stdio::piped());
        workspace.watchdog = Some(spawn(&mut watchdog)?);
        Ok(workspace)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that runs as the unprivileged user, in the directory, away from the terminal's signals.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(User { uid, gid }) = self.user {
            command.uid(uid).gid(gid).env("HOME", &self.dir);
        }
        command
    }

    /// Runs `command` to its end and returns what it printed; an error with its output if it failed.
    pub fn run(&self, mut command: Command) -> Result<String, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.map_err(|source| Error::Spawn { program: program.clone(), source })?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(Error::Failed { program, output: format!("{printed}{complaint}").trim().to_owned() })
    }

    /// Writes a file readable by the server alone; an existing one is replaced.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<PathBuf, Error> {
        let path = self.dir.join(path);
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mut file = opened.map_err(Error::file("create", &path))?;
        file.write_all(contents.as_ref()).map_err(Error::file("write", &path))?;
        if let Some(user) = self.user {
            chown(&path, Some(user.uid), Some(user.gid)).map_err(Error::file("change the owner of", &path))?;
        }
        Ok(path)
    }

    /// Starts the process of this workspace.
    pub fn start(&mut self, command: &mut Command) -> Result<(), Error> {
        assert!(self.child.is_none(), "a workspace holds one process at a time");
        let child = spawn(command)?;
        let pid = child.id().to_string();
        self.child = Some(child);
        self.write("pid", pid)?;
        Ok(())
    }

    /// The process id, while it has not ended.
    pub fn pid(&mut self) -> Option<u32> {
        let running = matches!(self.child.as_mut()?.try_wait(), Ok(None));
        if running { self.child.as_ref().map(Child::id) } else { None }
    }

    /// Sends `signal` (a name that `kill` knows, such as `QUIT`) and waits for the end; kills when `patience` has passed.
    pub fn stop(&mut self, signal: &str, patience: Duration) {
        if self.pid().is_some() {
            self.signal(signal);
            let deadline = Instant::now() + patience;
            while self.pid().is_some() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.kill();
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that has ended, which is what is wanted.
            drop(child.kill());
            drop(child.wait());
        }
    }

    pub fn signal(&mut self, signal: &str) {
        if let Some(pid) = self.pid() {
            // The shell's own `kill`: not every system has the program.
            drop(
                Command::new("sh")
                    .args(["-c", "kill -s \"$1\" \"$2\" 2>/dev/null", "sh", signal, &pid.to_string()])
                    .status(),
            );
        }
    }

    /// Leaves process and directory as they are after we have gone; returns the directory.
    pub fn keep(mut self) -> PathBuf {
        if let Some(mut watchdog) = self.watchdog.take() {
            if let Some(mut input) = watchdog.stdin.take() {
                // It fails only if the watchdog is gone already, and then it cannot remove anything.
                drop(input.write_all(b"keep\n"));
            }
            drop(watchdog.wait());
        }
        self.child = None;
        self.dir.clone()
    }

    fn end_watchdog(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            drop(watchdog.wait());
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop(self.last_signal, Duration::from_secs(5));
        }
        self.end_watchdog();
    }
}

/// A port that nobody listened on a moment ago. Others may be quicker: whoever uses it retries.
pub fn free_port() -> Result<u16, Error> {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..PORT_ATTEMPTS).map(|_| fastrand::u16(PORTS)).find(free).ok_or(Error::NoPort)
}

pub(super) fn is_root() -> bool {
    own_user().is_some_and(|user| user.uid == 0)
}

/// Whose files are whose: the user that servers run as.
pub(super) fn server_uid() -> Result<u32, Error> {
    Ok(unprivileged_user()?.or_else(own_user).map_or(0, |user| user.uid))
}

fn own_user() -> Option<User> {
    let metadata = fs::metadata("/proc/self").ok()?;
    Some(User { uid: metadata.uid(), gid: metadata.gid() })
}

fn unprivileged_user() -> Result<Option<User>, Error> {
    if !is_root() {
        return Ok(None);
    }
    let path = Path::new("/etc/passwd");
    let passwd = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let find = |wanted: &str| passwd.lines().find_map(|line| user_of(line, wanted));
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or(Error::NoUser)
}

/// passwd(5): `name:password:uid:gid:…`
fn user_of(line: &str, wanted: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
    (name == wanted).then_some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

fn fresh_dir(kind: &str) -> Result<PathBuf, Error> {
    let unique = format!("changeover-{kind}-{}-{:06x}", std::process::id(), fastrand::u32(..0x100_0000));
    let dir = temporary_root().join(unique);
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(Error::file("create", &dir))?;
    Ok(dir)
}

/// The system's temporary directory, unless its path is so long that a Unix socket below it would not fit the 107 bytes
/// of `sockaddr_un`.
pub(super) fn temporary_root() -> PathBuf {
    const LENGTH_MAX: usize = 40;
    let root = env::temp_dir();
    if root.as_os_str().len() > LENGTH_MAX { "/tmp".into() } else { root }
}

fn spawn(command: &mut Command) -> Result<Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|source| Error::Spawn { program, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(path: &Path) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while path.exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        !path.exists()
    }

    #[test]
    fn the_process_and_the_directory_go_with_the_workspace() {
        let mut workspace = Workspace::create("unit").unwrap();
        let mut command = workspace.command("sleep");
        workspace.start(command.arg("600")).unwrap();
        let (dir, pid) = (workspace.dir().to_owned(), workspace.pid().unwrap());
        drop(workspace);
        assert!(!dir.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn the_watchdog_cleans_up_when_its_owner_could_not() {
        let mut workspace = Workspace::create("unit").unwrap();
        let mut command = workspace.command("sleep");
        workspace.start(command.arg("600")).unwrap();
        let dir = workspace.dir().to_owned();
        // What the kernel does to a process that is killed: its pipes are closed, its destructors do not run.
        drop(workspace.watchdog.as_mut().unwrap().stdin.take());
        assert!(gone(&dir));
        std::mem::forget(workspace);
    }

    #[test]
    fn what_is_kept_outlives_us() {
        let workspace = Workspace::create("unit").unwrap();
        let dir = workspace.keep();
        assert!(dir.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn users_are_read_from_passwd() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        assert_eq!(user_of(line, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user_of(line, "nobody"), None);
    }
}
