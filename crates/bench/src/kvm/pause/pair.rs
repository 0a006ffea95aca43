//! A primary and a secondary in this process, which talk to each other as on two hosts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use machine::bus::lock;
use machine::vm::Vm;
use protocol::{Arbiter, Claim, Epoch, Generation, Replica, Suspicion, Unreachable, Verdict};
use replication::channel::{Identity, Listener, create_authority, issue};
use replication::disk::DiskSet;
use replication::driver::{Figures, MirrorOptions, Primary, PrimaryParts, Secondary, SecondaryParts, Trigger};
use replication::gate::OutputGate;
use spec::{EngineKind, ReplicaId};
use terminal::interrupt;

use super::writer;

const PRIMARY: &str = "primary";
const SECONDARY: &str = "secondary";
/// Neither host can be lost, and the machine may be busy.
const SUSPICION: Duration = Duration::from_secs(20);
/// How long the first copy may take.
const PROTECT_TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// The claim, in memory.
struct Store(Mutex<Claim>);

impl Arbiter for Store {
    fn read(&self) -> Result<Claim, Unreachable> {
        Ok(lock(&self.0).clone())
    }

    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        let mut claim = lock(&self.0);
        if claim.generation != expected {
            return Ok(Verdict::Lost(claim.clone()));
        }
        *claim = new.clone();
        Ok(Verdict::Won)
    }
}

/// Protects `vm` for `time` with epochs of `epoch_length`, and tells what that cost.
pub fn protect(mut vm: Vm, epoch_length: Duration, time: Duration) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority");
    create_authority(&authority)?;
    let identity = |host: &str| -> Result<Identity> {
        issue(&authority, host, &folder.path().join(host))?;
        Ok(Identity::load(&folder.path().join(host))?)
    };
    let (primary_identity, secondary_identity) = (identity(PRIMARY)?, identity(SECONDARY)?);
    let claim = Claim { generation: Generation::new(1), primary: ReplicaId::new(PRIMARY), secondary: None };
    let store = Arc::new(Store(Mutex::new(claim.clone())));
    let options = |host: &str| MirrorOptions {
        suspicion: Suspicion::up_to(SUSPICION),
        epoch_length_max: epoch_length,
        // Time alone ends an epoch.
        dirty_pages_max: u64::MAX / 64,
        ..MirrorOptions::new(ReplicaId::new(host))
    };
    let listener = Listener::bind("127.0.0.1:0".parse()?, &secondary_identity)?;
    let address = listener.local_addr()?;
    let secondary = Secondary::new(SecondaryParts {
        replica: Replica::secondary(ReplicaId::new(SECONDARY)),
        listener,
        config: writer::config(),
        engine: EngineKind::Kvm,
        disks: DiskSet::new(Vec::new()),
        make_vm: Box::new(|_, _| Err("it measures the primary only".to_owned())),
        arbiter: store.clone(),
        options: options(SECONDARY),
    })?;
    // It waits for a primary, and would do so for ever if that does not come: nothing waits for it.
    thread::spawn(move || secondary.run());
    let trigger = Arc::new(Trigger::default());
    let waiting = trigger.clone();
    let primary = Primary::new(PrimaryParts {
        replica: Replica::primary(ReplicaId::new(PRIMARY), claim),
        epoch: Epoch::new(0),
        config: writer::config(),
        engine: EngineKind::Kvm,
        profile: vm.profile().clone(),
        ram: vm.platform().ram().clone(),
        dirty_log: vm.dirty_log(),
        gate: OutputGate::new(Box::new(move || waiting.output_waits())),
        trigger,
        disks: DiskSet::new(Vec::new()),
        control: vm.control(),
        arbiter: store,
        options: options(PRIMARY),
    });
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let end = primary.run(&mut vm);
            ended.store(true, Ordering::Release);
            end
        });
        let figures = primary
            .protect(ReplicaId::new(SECONDARY), address, &primary_identity)
            .map_err(anyhow::Error::from)
            .and_then(|()| measure(&primary, &ended, time));
        primary.pull_the_plug();
        guest.join().map_err(|_| anyhow!("the guest's thread panicked"))??;
        figures
    })
}

fn measure(primary: &Primary, ended: &AtomicBool, time: Duration) -> Result<Figures> {
    let (begin, mut protected_at) = (Instant::now(), None);
    loop {
        let status = primary.status();
        if let Some(why) = status.failure {
            bail!("the secondary is lost: {why}");
        }
        if ended.load(Ordering::Acquire) || interrupt::is_requested() {
            bail!("interrupted");
        }
        if protected_at.is_none() && status.protocol.is_protected() {
            protected_at = Some(Instant::now());
        }
        match protected_at {
            Some(since) if since.elapsed() >= time => return Ok(status.figures),
            None if begin.elapsed() > PROTECT_TIMEOUT => {
                bail!("the first copy is not done after {} s", PROTECT_TIMEOUT.as_secs())
            }
            _ => thread::sleep(POLL),
        }
    }
}
