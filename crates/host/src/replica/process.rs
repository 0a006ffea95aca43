//! What a replica process does from its start to its end.

mod cards;
mod confined;
mod disks;
mod hang;
mod job;
mod requests;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::figures::{LastTripleFault, Takeover};
use api::messages::SessionKeys;
use api::status::{ReplicaStatus, Role};
use api::time::unix_ms_now;
use machine::device_meter::DeviceMeter;
use machine::devices::virtio::net::NetConfig;
use machine::devices::virtio::rng::OsEntropy;
use machine::engine::soft::InputMode;
use machine::generation::GenerationId;
use machine::platform::Parts;
use machine::triple_fault::TripleFaults;
use machine::vm::{Boot, Vm};
use network::FrameBackend;
use protocol::{self, Arbiter, Claim, DropReason, Epoch, RETRY_INTERVAL, Replica, StopReason, Unreachable, Verdict};
use replication::channel::{Identity, Listener, PemKeys};
use replication::disk::DiskSet;
use replication::driver::{
    MirrorOptions, Primary, PrimaryEnd, PrimaryParts, Secondary, SecondaryEnd, SecondaryHandle, SecondaryParts,
    TakenOver, Trigger,
};
use replication::gate::OutputGate;
use spec::{FtMode, ReplicaId, VmSpec};

use self::confined::confine;
use self::disks::{DiskSource, Snapshots};
pub use self::job::{DiskJob, DiskWork};
use self::requests::Control;
use super::broker::Broker;
use super::config::{self, ReplicaConfig};
use super::console::Console;
use super::control::{ControlServer, ControlSocket, Request, UnprotectReason};
use super::disk_copy;
use super::end::ReplicaEnd;
use super::ends::Ends;
use super::process_log::ProcessLog;
use super::report;
use crate::foreground::open;
use crate::foreground::snapshots::{Holds, Saved, SnapshotDisks};
use terminal::error_text::error_text;

/// What the process is at the moment.
enum Acting {
    /// Not yet anything: files are being opened.
    Starting,
    /// The guest asked for a reset, and is being started again.
    Restarting,
    /// With what reads what its devices do.
    Primary(Primary, DeviceMeter),
    Secondary(SecondaryHandle),
}

/// The process of one replica, as its threads share it.
pub struct Process {
    config: ReplicaConfig,
    spec: VmSpec,
    disks: DiskSet,
    /// What a snapshot says of the disks.
    saved_disks: SnapshotDisks,
    /// What the replica proves its host's name with, unless a request brings other keys.
    identity: Option<Identity>,
    /// Acts for this process where it may not.
    broker: Arc<Broker>,
    ends: Ends,
    statm: File,
    console: Console,
    log: ProcessLog,
    triple_faults: Arc<TripleFaults>,
    snapshots: Snapshots,
    /// Held while the generation of the disks is noted.
    marking: Arc<Mutex<()>>,
    shared: Mutex<Shared>,
}

struct Shared {
    acting: Acting,
    /// How the VM is replicated if this is the primary: as configured, until somebody says otherwise.
    mode: FtMode,
    listen: Option<SocketAddr>,
    since: Instant,
    failovers: u64,
    last_takeover: Option<Takeover>,
    protection: report::ProtectionLog,
    /// What was opened before the process was confined.
    opened: Option<Opened>,
}

/// What a replica needs and could not open once it is confined.
struct Opened {
    control: ControlSocket,
    /// A secondary's.
    listener: Option<Listener>,
    disks: DiskSet,
    /// A primary's that goes on from a snapshot.
    saved: Option<Box<Saved>>,
}

/// What a guest begins from.
enum From {
    /// Power-on; after a reset it is the VM that it was, by this ID.
    PowerOn(Option<GenerationId>),
    Snapshot(Box<Saved>),
}

/// Why the guest ended here, and whether it wants to be started again.
enum Ended {
    For(ReplicaEnd),
    /// With these disks, which stay open, as their files are locked while they are; and as the VM that it is, by this ID.
    Reset(DiskSet, Option<GenerationId>),
}

/// Whether this replica has the VM for itself.
enum Claimed {
    Alone(Claim),
    /// The store says that this replica runs it.
    By(ReplicaId),
}

impl Process {
    /// Opens what a replica of either role needs, and confines the process to it. It must not have more threads than one.
    pub fn new(config: ReplicaConfig, log: ProcessLog) -> Result<Self> {
        let spec = config.vm_spec()?;
        let identity = config.identity.as_deref().map(Identity::load).transpose()?;
        let (broker, child) = Broker::start(&config::file(&config.folder))?;
        let broker = Arc::new(broker);
        let statm = File::open("/proc/self/statm").context("/proc/self/statm")?;
        let control = ControlSocket::bind(&config.socket())?;
        let listener = match (config.role, &identity) {
            (Role::Primary, _) => None,
            (Role::Secondary, None) => bail!("a secondary needs keys"),
            (Role::Secondary, Some(identity)) => {
                let address = config.listen.context("a secondary needs an address to listen at")?;
                Some(Listener::bind(address, identity)?)
            }
        };
        if config.role == Role::Primary {
            disk_copy::startable(&config.folder, false)?;
        }
        let source = DiskSource::open(&config, &spec)?;
        confine(&config, &spec, &source)?;
        log.queue().context("cannot start to log")?;
        let (images, saved) = source.disks(&spec)?;
        let saved_disks = SnapshotDisks::of(&images);
        let disks = DiskSet::new(images);
        disks.recall_digests(&config.folder);
        let (folder, dying) = (config.folder.clone(), log.clone());
        Broker::watch(child, move |why| {
            tracing::error!(%why, "a replica without its broker could not take over");
            end_at_once(&folder, &dying, why);
        })?;
        let suspicion = Duration::from_millis(config.suspicion_ms.into());
        let ends = Ends::new(&config.network_ends, &spec.networks, suspicion, broker.clone());
        let shared = Shared {
            acting: Acting::Starting,
            mode: config.mode,
            listen: None,
            since: Instant::now(),
            failovers: 0,
            last_takeover: None,
            protection: report::ProtectionLog::default(),
            opened: Some(Opened { control, listener, disks: disks.clone(), saved }),
        };
        Ok(Self {
            config,
            spec,
            disks,
            saved_disks,
            identity,
            broker,
            ends,
            statm,
            console: Console::of_new_run()?,
            log,
            triple_faults: Arc::default(),
            snapshots: Snapshots::default(),
            marking: Arc::default(),
            shared: Mutex::new(shared),
        })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the replica in its role, and in the other one once it has taken over, until there is nothing left to do.
    pub fn run(self: &Arc<Self>) -> Result<ReplicaEnd> {
        let Opened { control, listener, disks, saved } = self.shared().opened.take().context("a replica runs once")?;
        let _server = ControlServer::start(control, Arc::new(Control(self.clone())))?;
        let watching = self.clone();
        thread::Builder::new().name("ends".to_owned()).spawn(move || watching.watch_ends())?;
        let watching = self.clone();
        thread::Builder::new().name("silent-ends".to_owned()).spawn(move || watching.watch_for_silent_ends())?;
        let watching = self.clone();
        thread::Builder::new().name("hang-watch".to_owned()).spawn(move || watching.watch_for_hang())?;
        let mut ended = match self.config.role {
            Role::Primary => match self.claim_alone()? {
                Claimed::Alone(claim) => self.begin(claim, disks, saved.map_or(From::PowerOn(None), From::Snapshot))?,
                Claimed::By(other) => bail!("the cluster store says that {other} runs VM {}", self.config.vm),
            },
            Role::Secondary => self.follow(listener.context("a secondary listens")?, disks)?,
        };
        loop {
            match ended {
                Ended::For(end) => {
                    self.console.end_log();
                    self.snapshots.end();
                    if end != ReplicaEnd::PlugPulled {
                        self.record_digests();
                    }
                    return Ok(end);
                }
                Ended::Reset(disks, generation) => ended = self.restart(disks, generation)?,
            }
        }
    }

    fn id(&self) -> ReplicaId {
        ReplicaId::new(&self.config.host)
    }

    fn options(&self) -> MirrorOptions {
        MirrorOptions {
            suspicion: self.config.suspicion(),
            epoch_length_max: Duration::from_millis(self.config.epoch_ms_max.into()),
            lag_max: Duration::from_millis(self.config.lag_ms_max.into()),
            mode: self.shared().mode,
            evidence_folder: Some(self.config.folder.clone()),
            copy_mark: Some(self.copy_mark()),
            triple_faults: self.triple_faults.clone(),
            console: Some(Arc::new(self.console.clone())),
            ..MirrorOptions::new(self.id())
        }
    }

    /// Takes the VM for this replica alone, so that no earlier secondary may take it over.
    fn claim_alone(&self) -> Result<Claimed, Unreachable> {
        let mut current = self.broker.read()?;
        while current.primary == self.id() {
            let claim = Claim { generation: current.generation.next(), primary: self.id(), secondary: None };
            current = match self.broker.compare_and_swap(current.generation, &claim)? {
                Verdict::Won => return Ok(Claimed::Alone(claim)),
                // By this replica itself, perhaps: before a reset it may have asked a question that is only answered now.
                Verdict::Lost(other) => other,
            };
        }
        Ok(Claimed::By(current.primary))
    }

    /// Boots the guest again, after a reset that it asked for.
    fn restart(self: &Arc<Self>, disks: DiskSet, generation: Option<GenerationId>) -> Result<Ended> {
        // The machine before, with its memory, is gone by now, but for what holds on to it here.
        self.shared().acting = Acting::Restarting;
        loop {
            match self.claim_alone() {
                Ok(Claimed::Alone(claim)) => return self.begin(claim, disks, From::PowerOn(generation)),
                Ok(Claimed::By(other)) => {
                    let message = format!("{other} took the VM over while its guest was being reset");
                    return Ok(Ended::For(ReplicaEnd::LostArbitration { message }));
                }
                // As at a takeover: without the store nobody goes on.
                Err(error) => {
                    tracing::warn!(%error, "the cluster store cannot be reached");
                    thread::sleep(RETRY_INTERVAL);
                }
            }
        }
    }

    /// Makes the VM and runs it.
    fn begin(self: &Arc<Self>, claim: Claim, disks: DiskSet, from: From) -> Result<Ended> {
        let trigger = Arc::new(Trigger::default());
        let gate = gate(&trigger);
        let cards = self.connected_cards(&gate, claim.generation)?;
        let parts = self.parts(&disks, cards)?;
        self.mark_copy(claim.generation);
        let mut vm = match from {
            From::PowerOn(generation) => self.boot(parts, generation)?,
            From::Snapshot(saved) => saved.go_on(parts, self.config.engine, InputMode::Live)?,
        };
        let replica = Replica::primary(self.id(), claim);
        let primary = self.primary(replica, Epoch::NONE, &vm, gate, trigger, disks.clone());
        self.lead(&primary, &mut vm, disks)
    }

    /// The VM at power-on, with the generation ID that it had before, if any.
    fn boot(&self, parts: Parts, generation: Option<GenerationId>) -> Result<Vm> {
        let guest = open::guest(&self.spec)?;
        let boot =
            Boot::Linux { kernel: &guest.kernel, initrd: guest.initrd.as_deref(), command_line: &guest.command_line };
        let vm = Vm::boot(open::config(&self.spec)?, &boot, parts, self.config.engine, InputMode::Live)?;
        generation.map_or(Ok(()), |id| vm.keep_generation(id))?;
        Ok(vm)
    }

    /// Everything outside of the VM.
    fn parts(&self, disks: &DiskSet, cards: Vec<(u16, Box<dyn FrameBackend>)>) -> Result<Parts> {
        let cards = self.macs().into_iter().zip(cards).map(|(mac, (mtu, end))| (NetConfig { mac, mtu }, end));
        Ok(Parts {
            disks: disks.backends(),
            cards: cards.collect(),
            console: Box::new(self.console.clone()),
            entropy: Box::new(OsEntropy::open().context("cannot open /dev/urandom")?),
        })
    }

    fn primary(
        &self,
        replica: Replica,
        epoch: Epoch,
        vm: &Vm,
        gate: OutputGate,
        trigger: Arc<Trigger>,
        disks: DiskSet,
    ) -> Primary {
        Primary::new(PrimaryParts {
            replica,
            epoch,
            config: vm.config().clone(),
            engine: vm.engine(),
            profile: vm.profile().clone(),
            ram: vm.platform().ram().clone(),
            dirty_log: vm.dirty_log(),
            gate,
            trigger,
            disks,
            control: vm.control(),
            arbiter: self.broker.clone(),
            options: self.options(),
        })
    }

    /// Runs the guest.
    fn lead(&self, primary: &Primary, vm: &mut Vm, disks: DiskSet) -> Result<Ended> {
        self.console.attach(vm.control());
        self.console.log(&self.config);
        {
            let mut shared = self.shared();
            shared.acting = Acting::Primary(primary.clone(), vm.device_meter());
            shared.since = Instant::now();
        }
        let end = primary.run(vm)?;
        Ok(Ended::For(match end {
            PrimaryEnd::Reset => return Ok(Ended::Reset(disks, GenerationId::of(vm.platform().ram()))),
            PrimaryEnd::PoweredOff => ReplicaEnd::PoweredOff,
            PrimaryEnd::PlugPulled => ReplicaEnd::PlugPulled,
            PrimaryEnd::Stopped(reason) => ReplicaEnd::LostArbitration { message: reason.to_string() },
        }))
    }

    /// Holds the VM until it is taken over or not needed any more.
    fn follow(self: &Arc<Self>, listener: Listener, disks: DiskSet) -> Result<Ended> {
        let config = open::config(&self.spec)?;
        let listen = listener.local_addr()?;
        let trigger = Arc::new(Trigger::default());
        let gate = gate(&trigger);
        let (making, own_gate, own_disks, own_config) = (self.clone(), gate.clone(), disks.clone(), config.clone());
        let secondary = Secondary::new(SecondaryParts {
            replica: Replica::secondary(self.id()),
            listener,
            config,
            engine: self.config.engine,
            disks: disks.clone(),
            make_vm: Box::new(move |ram, state| {
                making.make_vm(&own_config, ram, state, &own_gate, &own_disks).map_err(|error| error_text(&error))
            }),
            arbiter: self.broker.clone(),
            options: self.options(),
        })?;
        {
            let mut shared = self.shared();
            shared.listen = Some(listen);
            shared.acting = Acting::Secondary(secondary.handle());
        }
        match secondary.run() {
            SecondaryEnd::Ended => Ok(Ended::For(ReplicaEnd::Released { message: "the guest powered off".to_owned() })),
            SecondaryEnd::Stopped { reason: StopReason::Superseded, why } => {
                Ok(Ended::For(ReplicaEnd::LostArbitration { message: why }))
            }
            SecondaryEnd::Stopped { why, .. } => Ok(Ended::For(ReplicaEnd::Released { message: why })),
            SecondaryEnd::TakenOver(taken) => self.take_over(*taken, gate, trigger, disks),
        }
    }

    /// Ends this secondary, whose primary then gets another one.
    fn end_without_network(&self, why: &str) {
        let status = match &self.shared().acting {
            Acting::Secondary(secondary) => secondary.status().protocol,
            _ => return,
        };
        // One that competes for the VM, or has it, may yet reach its network.
        if status.role != protocol::Role::Secondary || status.is_undecided() {
            return;
        }
        tracing::error!(%why, "a secondary without its network could not take over");
        end_at_once(&self.config.folder, &self.log, why.to_owned());
    }

    /// Connects the VM that the secondary has made to its network, and runs it. Nothing here can fail: there is no other replica any more. A network
    /// end that is gone since it was last asked is connected to when it is back.
    fn take_over(
        self: &Arc<Self>,
        taken: TakenOver,
        gate: OutputGate,
        trigger: Arc<Trigger>,
        disks: DiskSet,
    ) -> Result<Ended> {
        let connecting = Instant::now();
        let TakenOver { replica, epoch, mut vm, output, inputs, positions, arbitration, detection, restore, .. } =
            taken;
        gate.resume_at(&positions);
        self.ends.plug(&gate, replica.status().generation);
        gate.announce(&self.macs());
        gate.send_again(&output);
        for input in &inputs {
            vm.platform().deliver(input);
        }
        self.mark_copy(replica.status().generation);
        let primary = self.primary(replica, epoch, &vm, gate, trigger, disks.clone());
        let restore = restore + connecting.elapsed();
        tracing::info!(
            %epoch,
            ?detection,
            ?arbitration,
            ?restore,
            frames = output.len(),
            inputs = inputs.len(),
            "taken over"
        );
        {
            let mut shared = self.shared();
            shared.failovers += 1;
            shared.listen = None;
            shared.last_takeover = Some(Takeover {
                at_unix_ms: unix_ms_now(),
                detected_ms: detection.as_secs_f64() * 1e3,
                arbitration_ms: arbitration.as_secs_f64() * 1e3,
                restore_ms: restore.as_secs_f64() * 1e3,
            });
        }
        self.lead(&primary, &mut vm, disks)
    }

    fn status(&self) -> ReplicaStatus {
        let mut shared = self.shared();
        let report::Report { role, generation, mode, peer, sync, figures, protection, mut faults } =
            match &shared.acting {
                Acting::Starting => report::starting(self.config.role),
                Acting::Restarting => report::starting(Role::Primary),
                Acting::Primary(primary, meter) => report::primary(&primary.status(), &meter.read()),
                Acting::Secondary(secondary) => report::secondary(&secondary.status()),
            };
        let figures = api::figures::Figures {
            failovers: shared.failovers,
            last_takeover: shared.last_takeover,
            triple_faults: self.triple_faults.count(),
            last_triple_fault: self
                .triple_faults
                .last()
                .map(|seen| LastTripleFault { at_unix_ms: seen.at_unix_ms, place: seen.fault.to_string() }),
            memory_bytes: report::resident_bytes(&self.statm),
            ..figures
        };
        faults.extend(self.ends.faults());
        ReplicaStatus {
            vm: self.config.vm.clone(),
            host: self.config.host.clone(),
            pid: std::process::id(),
            role,
            engine: self.config.engine,
            mode,
            generation,
            running_s: shared.since.elapsed().as_secs(),
            protection: shared.protection.note(protection),
            faults,
            peer,
            sync,
            listen: shared.listen,
            figures,
        }
    }

    fn set_mode(&self, primary: &Primary, mode: FtMode) -> Result<()> {
        primary.set_mode(mode)?;
        // Also for the machine after a reset.
        self.shared().mode = mode;
        Ok(())
    }

    /// Answers how long the guest stood still for a snapshot.
    fn carry_out(self: &Arc<Self>, request: &Request) -> Result<Option<Duration>> {
        let (primary, is_restarting) = match &self.shared().acting {
            Acting::Primary(primary, _) => (Some(primary.clone()), false),
            Acting::Restarting => (None, true),
            Acting::Starting | Acting::Secondary(_) => (None, false),
        };
        let done: Result<()> = match (request, primary) {
            (Request::Status | Request::Console(_), _) => Ok(()),
            (Request::Kill, _) => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
                Ok(())
            }
            (Request::SetMode { mode }, Some(primary)) => self.set_mode(&primary, *mode),
            (Request::Protect { secondary, address, mode, session }, Some(primary)) => {
                mode.map_or(Ok(()), |mode| self.set_mode(&primary, mode))?;
                let identity = match session {
                    Some(keys) => Identity::from_keys(&pem_keys(keys))?,
                    None => self.identity.clone().context("the request brings no keys")?,
                };
                let socket = self.broker.secondary(*address)?;
                Ok(primary.protect_over(ReplicaId::new(secondary), socket, &identity)?)
            }
            (Request::Unprotect { reason }, Some(primary)) => {
                primary.unprotect(match reason {
                    UnprotectReason::Off => DropReason::Off,
                    UnprotectReason::Suspend => DropReason::Suspend,
                    UnprotectReason::Restart => DropReason::Restart,
                });
                Ok(())
            }
            (Request::Switchover, Some(primary)) => Ok(primary.switch_over()?),
            (Request::Snapshot { name, memory }, Some(primary)) => {
                let holds = if *memory { Holds::Memory } else { Holds::DisksAlone };
                return self.take_snapshot(&primary, name, holds).map(Some);
            }
            (Request::Stop { force: true }, Some(primary)) => {
                primary.pull_the_plug();
                Ok(())
            }
            (Request::Stop { force: false }, Some(primary)) => {
                primary.while_paused(|vm| vm.control().press_power_button())?;
                Ok(())
            }
            (Request::Stop { force: true }, None) => {
                let end = if is_restarting {
                    ReplicaEnd::PlugPulled
                } else {
                    ReplicaEnd::Released { message: "it was told to end".to_owned() }
                };
                self.snapshots.end();
                self.record_digests();
                end.leave(&self.config.folder)?;
                let _ = fs::remove_file(self.config.socket());
                self.log.finish();
                std::process::exit(0);
            }
            (_, None) => bail!("this replica does not run the VM"),
        };
        done.map(|()| None)
    }
}

fn gate(trigger: &Arc<Trigger>) -> OutputGate {
    let trigger = trigger.clone();
    OutputGate::new(Box::new(move || trigger.output_waits()))
}

/// Leaves the reason and ends the process, whatever its threads do.
fn end_at_once(folder: &Path, log: &ProcessLog, why: String) {
    if let Err(error) = (ReplicaEnd::Failed { message: why }).leave(folder) {
        tracing::error!("{}", error_text(&error));
    }
    let _ = fs::remove_file(config::socket(folder));
    log.finish();
    std::process::exit(1);
}

fn pem_keys(keys: &SessionKeys) -> PemKeys {
    let SessionKeys { authority, certificate, key } = keys.clone();
    PemKeys { authority, certificate, key }
}
