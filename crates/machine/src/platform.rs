//! The platform: everything of a VM but its vCPUs and interrupt controllers.
//!
//! An engine reaches devices through [`Platform::mmio_read`] and its kin, and asks after each access what changed:
//! the interrupt pins, a [`GuestEvent`]. What comes from outside passes through two steps, [`Platform::collect_inputs`] and
//! [`Platform::deliver`], so that an engine can note in between when it entered.

mod freezing;
mod queueing;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memory::GuestRam;
use network::{BackendError, FRAME_LEN_MAX, FrameBackend, LinkState};
use serde::{Deserialize, Serialize};

use crate::acpi::AcpiConfig;
use crate::bus::{Bus, BusDevice, RangeTaken, Shared, lock, shared};
use crate::clock::MachineClock;
use crate::control::Control;
use crate::devices::panic_notifier::PanicNotifier;
use crate::devices::power::{KeyboardReset, Power, PowerState, ResetControl, ResetControlState};
use crate::devices::rtc::{Rtc, RtcState};
use crate::devices::serial::{ConsoleSink, Serial, SerialState};
use crate::devices::virtio::block::{Block, BlockBackend, BlockMetrics, BlockState, DiskFailure};
use crate::devices::virtio::net::{Net, NetConfig, NetMetrics, NetState};
use crate::devices::virtio::rng::{EntropySource, Rng, RngState};
use crate::devices::virtio::{MmioState, MmioTransport, VirtioDevice};
use crate::events::{GuestEvent, GuestEvents};
use crate::input::{Input, TakenSignal};
use crate::irq::{IrqPin, IrqPins};
use crate::map;
pub use queueing::{Notification, Ready};
use queueing::{Queueing, VirtioSlot, timespec};

/// Most frames taken from one card before the vCPUs run again.
const FRAMES_PER_ROUND: usize = 64;

/// What of a VM lies outside of it: the ends of its disks, cards and console.
pub struct Parts {
    /// The disks, /dev/vda first.
    pub disks: Vec<Box<dyn BlockBackend>>,
    /// The network cards, eth0 first.
    pub cards: Vec<(NetConfig, Box<dyn FrameBackend>)>,
    /// Where console output goes.
    pub console: Box<dyn ConsoleSink>,
    /// Where the random number device gets its bytes.
    pub entropy: Box<dyn EntropySource>,
}

/// The saved state of a platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    /// Wall-clock time of power-on, nanoseconds since the Unix epoch.
    pub power_on_unix_ns: u64,
    /// Virtual time since power-on, in nanoseconds.
    pub clock_ns: u64,
    /// Levels of the interrupt pins.
    pub pins: u32,
    /// The serial console.
    pub serial: SerialState,
    /// The real-time clock.
    pub rtc: RtcState,
    /// Power management.
    pub power: PowerState,
    /// The reset control register.
    pub reset_control: ResetControlState,
    /// The disks.
    pub disks: Vec<MmioState<BlockState>>,
    /// The network cards.
    pub cards: Vec<MmioState<NetState>>,
    /// The random number device.
    pub rng: MmioState<RngState>,
}

/// Why a platform cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// Two devices claim an address.
    #[error(transparent)]
    Range(#[from] RangeTaken),
    /// More devices than slots.
    #[error("more than {} disks and network cards", spec::DEVICES_MAX)]
    TooManyDevices,
    /// The saved state is of a VM with other devices.
    #[error("the saved VM has {saved} {what}, this one has {found}")]
    Count {
        /// Disks or network cards.
        what: &'static str,
        /// Number in the saved state.
        saved: usize,
        /// Number given.
        found: usize,
    },
    /// A device does not take its saved state.
    #[error("cannot restore {what}: {message}")]
    Restore {
        /// The device.
        what: String,
        /// Why the device cannot be restored.
        message: String,
    },
    /// The host refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

struct Card {
    device: Shared<MmioTransport<Net>>,
    /// A duplicate of the backend's poll descriptor, so that waiting takes no lock.
    poll: std::os::fd::OwnedFd,
    connected: AtomicBool,
    transmit_waits: AtomicBool,
}

/// Memory, buses and devices of one VM.
pub struct Platform {
    ram: GuestRam,
    pins: Arc<IrqPins>,
    events: Arc<GuestEvents>,
    clock: Arc<MachineClock>,
    ports: Bus,
    mmio: Bus,
    serial: Shared<Serial>,
    rtc: Shared<Rtc>,
    power: Shared<Power>,
    reset_control: Shared<ResetControl>,
    disks: Vec<Shared<MmioTransport<Block>>>,
    cards: Vec<Card>,
    rng: Shared<MmioTransport<Rng>>,
    /// All virtio devices, in the order of their slots.
    virtio: Vec<VirtioSlot>,
    queueing: Queueing,
    taken: TakenSignal,
    wake: vmm_sys_util::eventfd::EventFd,
    /// Where frames are received: clearing as much for each look would take longer than the look.
    frame_buffer: Mutex<Box<[u8]>>,
    /// Host time at which the clock stood at `clock_anchor_ns`, for engines that follow the host's clock.
    host_anchor: Instant,
    clock_anchor_ns: u64,
}

impl Platform {
    /// A platform at power-on.
    pub fn new(ram: &GuestRam, power_on_unix_ns: u64, parts: Parts) -> Result<Self, PlatformError> {
        Builder::new(ram, power_on_unix_ns, 0)?.finish(parts, None)
    }

    /// A platform as it was saved, with the ends of `parts`.
    pub fn restore(ram: &GuestRam, state: PlatformState, parts: Parts) -> Result<Self, PlatformError> {
        Builder::new(ram, state.power_on_unix_ns, state.clock_ns)?.finish(parts, Some(state))
    }

    /// The state of a paused VM's platform.
    pub fn save(&self) -> PlatformState {
        PlatformState {
            power_on_unix_ns: self.clock.power_on_unix_ns(),
            clock_ns: self.clock.now_ns(),
            pins: self.pins.levels(),
            serial: lock(&self.serial).save(),
            rtc: lock(&self.rtc).save(),
            power: lock(&self.power).save(),
            reset_control: lock(&self.reset_control).save(),
            disks: self.disks.iter().map(|disk| lock(disk).save()).collect(),
            cards: self.cards.iter().map(|card| lock(&card.device).save()).collect(),
            rng: lock(&self.rng).save(),
        }
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The interrupt pins.
    #[inline]
    pub fn pins(&self) -> &IrqPins {
        &self.pins
    }

    /// The clock that devices read.
    pub fn clock(&self) -> &Arc<MachineClock> {
        &self.clock
    }

    /// What the ACPI tables have to describe.
    pub fn acpi_config(&self, vcpus: u32) -> AcpiConfig {
        let devices = self.disks.len() + self.cards.len() + 1;
        AcpiConfig { vcpus, virtio: (0..devices).filter_map(map::virtio_slot).collect() }
    }

    /// Tells the guest that its generation ID has changed.
    pub(crate) fn announce_generation(&self) {
        lock(&self.power).announce_generation();
    }

    /// Whether the guest has a driver that notices when its generation ID has changed.
    pub fn heeds_generation(&self) -> bool {
        lock(&self.power).heeds_generation()
    }

    /// Writes all disks' content to stable storage, as far as the guest has written it.
    pub fn flush_disks(&self) -> io::Result<()> {
        for disk in &self.disks {
            lock(disk).device().flush()?;
        }
        Ok(())
    }

    /// What each disk did in this process; none of one that is busy.
    pub fn disk_metrics(&self) -> Vec<Option<BlockMetrics>> {
        self.disks.iter().map(|disk| Some(disk.try_lock().ok()?.device().metrics())).collect()
    }

    /// What each card did in this process; none of one that is busy.
    pub fn card_metrics(&self) -> Vec<Option<NetMetrics>> {
        self.cards.iter().map(|card| Some(card.device.try_lock().ok()?.device().metrics())).collect()
    }

    /// The guest reads device memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.mmio.read(address, data);
    }

    /// The guest writes device memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        self.mmio.write(address, data);
    }

    /// The guest reads a port.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    /// The guest writes a port.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    /// Whether [`Platform::take_event`] has something.
    #[inline]
    pub fn has_event(&self) -> bool {
        self.events.any()
    }

    /// Takes what the guest asked of the machine as a whole.
    pub fn take_event(&self) -> Option<GuestEvent> {
        self.events.take()
    }

    /// Moves the devices' clock along with the host's.
    pub fn follow_host_clock(&self) {
        self.clock.advance_to(self.host_clock_ns());
    }

    /// What the devices' clock shows as soon as it follows the host's, in nanoseconds since power-on.
    pub fn host_clock_ns(&self) -> u64 {
        let elapsed_ns = u64::try_from(self.host_anchor.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.clock_anchor_ns.saturating_add(elapsed_ns)
    }

    /// Ends a [`Platform::wait_for_input`] in another thread.
    pub fn wake(&self) {
        // A full counter is readable as well.
        let _ = self.wake.write(1);
    }

    /// Forgets a [`Platform::wake`].
    pub fn acknowledge_wake(&self) {
        // An error means that there was none.
        let _ = self.wake.read();
    }

    /// Takes what waits outside, a bounded part of it, and appends it to `inputs`.
    pub fn collect_inputs(&self, control: &Control, inputs: &mut Vec<Input>) {
        if control.take_power_button() {
            inputs.push(Input::PowerButton);
        }
        let room = lock(&self.serial).receive_room();
        if room > 0 {
            let typed = control.take_console(room);
            if !typed.is_empty() {
                inputs.push(Input::Console(typed));
            }
        }
        for (number, card) in self.cards.iter().enumerate() {
            if card.connected.load(Ordering::Acquire) {
                self.collect_frames(number, card, inputs);
            }
        }
    }

    fn collect_frames(&self, number: usize, card: &Card, inputs: &mut Vec<Input>) {
        let mut device = lock(&card.device);
        let net = device.device_mut();
        if net.has_waiting_tx() {
            net.retry_transmit();
        }
        card.transmit_waits.store(net.has_waiting_tx(), Ordering::Release);
        let mut buffer = lock(&self.frame_buffer);
        for _ in 0..FRAMES_PER_ROUND {
            match net.backend_mut().recv(&mut buffer) {
                Ok(Some(received)) => inputs.push(Input::Frame {
                    card: number,
                    frame: buffer.get(..received.len).unwrap_or_default().to_vec(),
                    offload: received.offload,
                    position: net.backend_mut().position(),
                }),
                Ok(None) => {
                    let up = net.backend_mut().link_state() == LinkState::Up;
                    if up != net.is_link_up() {
                        inputs.push(Input::Link { card: number, up });
                    }
                    return;
                }
                Err(BackendError::Disconnected) => {
                    tracing::warn!(card = number, "the network end is gone");
                    card.connected.store(false, Ordering::Release);
                    inputs.push(Input::Link { card: number, up: false });
                    return;
                }
                Err(error) => tracing::warn!(card = number, %error, "a frame was lost"),
            }
        }
    }

    /// Gives an input to its device.
    pub fn deliver(&self, input: &Input) {
        match input {
            Input::Frame { card, frame, offload, position: _ } => {
                if let Some(card) = self.cards.get(*card) {
                    // Frames that find no room are dropped and counted by the device, as on any network.
                    let _ = lock(&card.device).deliver(frame, *offload);
                }
            }
            Input::Link { card, up } => {
                if let Some(card) = self.cards.get(*card) {
                    lock(&card.device).set_link(*up);
                }
            }
            Input::Console(bytes) => {
                lock(&self.serial).receive(bytes);
            }
            Input::PowerButton => lock(&self.power).press_power_button(),
            Input::Entropy(bytes) => lock(&self.rng).device_mut().supply(bytes.clone()),
            Input::DiskFailed { disk, request, content } => {
                let disk = usize::try_from(*disk).ok().and_then(|disk| self.disks.get(disk));
                if let Some(disk) = disk {
                    let failure = DiskFailure { request: *request, content: content.clone() };
                    lock(disk).device_mut().expect_failure(failure);
                }
            }
            // The engine steps its own clock.
            Input::ClockStep(_) => {}
        }
    }

    /// Says what becomes of what the guest takes by itself (see [`Input::is_ahead`]): whether it is kept for [`Platform::take_taken`],
    /// and whether disks fail when they are told to and not otherwise. The operations on each disk are counted from here on.
    pub fn follow_taken(&self, is_recorded: bool, is_replayed: bool) {
        let record = is_recorded.then(|| self.taken.clone());
        self.taken.withdraw();
        lock(&self.rng).device_mut().set_recording(record.clone());
        for disk in &self.disks {
            lock(disk).device_mut().follow(record.clone(), is_replayed);
        }
    }

    /// Whether [`Platform::take_taken`] has something.
    #[inline]
    pub fn has_taken(&self) -> bool {
        self.taken.is_raised()
    }

    /// What the guest took by itself since the last call, if that is kept.
    pub fn take_taken(&self) -> Vec<Input> {
        if !self.taken.is_raised() {
            return Vec::new();
        }
        self.taken.withdraw();
        let mut inputs: Vec<_> = lock(&self.rng).device_mut().take_record().map(Input::Entropy).into_iter().collect();
        for (disk, device) in (0..).zip(&self.disks) {
            let failures = lock(device).device_mut().take_failures().into_iter();
            inputs.extend(failures.map(|DiskFailure { request, content }| Input::DiskFailed {
                disk,
                request,
                content,
            }));
        }
        inputs
    }

    /// Why a replay is not what was recorded, if a disk has found out: it failed where it had not, or cannot be made to hold what it held
    /// after a failure.
    pub fn disk_divergence(&self) -> Option<String> {
        self.disks.iter().enumerate().find_map(|(number, disk)| {
            let disk = lock(disk);
            Some(format!("disk {number}: {}", disk.device().divergence()?))
        })
    }

    /// Offers frames that wait for room outside once more, for a VM whose inputs are not collected.
    pub fn retry_transmits(&self) {
        for card in &self.cards {
            lock(&card.device).device_mut().retry_transmit();
        }
    }

    /// Sleeps until something waits outside, somebody wakes it, or `timeout` is over.
    pub fn wait_for_input(&self, control: &Control, timeout: Option<Duration>) -> io::Result<()> {
        let mut fds = Vec::with_capacity(2 + self.cards.len());
        self.push_input_fds(control, &mut fds);
        let timeout = timeout.map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

struct Builder {
    ram: GuestRam,
    pins: Arc<IrqPins>,
    events: Arc<GuestEvents>,
    clock: Arc<MachineClock>,
    ports: Bus,
    mmio: Bus,
    virtio: Vec<VirtioSlot>,
}

impl Builder {
    fn new(ram: &GuestRam, power_on_unix_ns: u64, clock_ns: u64) -> Result<Self, PlatformError> {
        let clock = MachineClock::new(power_on_unix_ns);
        clock.advance_to(clock_ns);
        Ok(Self {
            ram: ram.clone(),
            pins: IrqPins::new(),
            events: GuestEvents::new(),
            clock,
            ports: Bus::default(),
            mmio: Bus::default(),
            virtio: Vec::new(),
        })
    }

    fn pin(&self, number: u32) -> IrqPin {
        IrqPin::new(&self.pins, number)
    }

    fn port(&mut self, first: u16, count: u16, device: Shared<impl BusDevice + 'static>) -> Result<(), PlatformError> {
        Ok(self.ports.insert(first.into(), count.into(), device)?)
    }

    /// Puts a virtio device into the next free slot, fresh or as saved.
    fn virtio<D>(
        &mut self,
        device: D,
        saved: Option<MmioState<D::State>>,
    ) -> Result<Shared<MmioTransport<D>>, PlatformError>
    where
        D: VirtioDevice + 'static,
        MmioTransport<D>: BusDevice,
    {
        let number = self.virtio.len();
        let slot = map::virtio_slot(number).ok_or(PlatformError::TooManyDevices)?;
        let memory = self.ram.dma().clone();
        let pin = self.pin(slot.gsi);
        let transport = match saved {
            None => MmioTransport::new(device, memory, pin),
            Some(saved) => MmioTransport::restore(saved.transport, device, memory, pin).map_err(|error| {
                PlatformError::Restore { what: format!("virtio slot {number}"), message: error.to_string() }
            })?,
        };
        let transport = shared(transport);
        self.mmio.insert(slot.base, slot.len, transport.clone())?;
        self.virtio.push(VirtioSlot {
            device: transport.clone(),
            base: slot.base,
            queues: D::QUEUE_SIZES_MAX.len() as u32,
        });
        Ok(transport)
    }

    fn finish(mut self, parts: Parts, state: Option<PlatformState>) -> Result<Platform, PlatformError> {
        if let Some(state) = &state {
            check_count("disks", state.disks.len(), parts.disks.len())?;
            check_count("network cards", state.cards.len(), parts.cards.len())?;
        }
        let restored = state.is_some();
        let (serial, rtc, power, reset_control, pins, disk_states, card_states, rng_state) = match state {
            None => (
                SerialState::default(),
                RtcState::default(),
                PowerState::default(),
                ResetControlState::default(),
                0,
                vec![None; parts.disks.len()],
                (0..parts.cards.len()).map(|_| None).collect(),
                None,
            ),
            Some(state) => (
                state.serial,
                state.rtc,
                state.power,
                state.reset_control,
                state.pins,
                state.disks.into_iter().map(Some).collect(),
                state.cards.into_iter().map(Some).collect::<Vec<_>>(),
                Some(state.rng),
            ),
        };
        let serial = shared(Serial::new(&serial, self.pin(map::SERIAL_GSI), parts.console));
        self.port(map::SERIAL_PORT, map::SERIAL_PORTS, serial.clone())?;
        let rtc = shared(Rtc::new(&rtc, self.clock.clone()));
        self.port(map::RTC_PORT, map::RTC_PORTS, rtc.clone())?;
        let power = shared(Power::new(&power, self.pin(map::POWER_GSI), self.events.clone()));
        self.port(map::POWER_PORT, map::POWER_PORTS, power.clone())?;
        let reset_control = shared(ResetControl::new(&reset_control, self.events.clone()));
        self.port(map::RESET_CONTROL_PORT, 1, reset_control.clone())?;
        let events = self.events.clone();
        self.port(map::KEYBOARD_RESET_PORT, 1, shared(KeyboardReset::new(events.clone())))?;
        self.port(map::PANIC_NOTIFIER_PORT, 1, shared(PanicNotifier::new(events)))?;

        let mut disks = Vec::new();
        for (index, (backend, saved)) in parts.disks.into_iter().zip(disk_states).enumerate() {
            let device = match &saved {
                None => Block::new(backend, &format!("disk{index}")),
                Some(saved) => Block::restore(saved.device.clone(), backend).map_err(|error| {
                    PlatformError::Restore { what: format!("disk {index}"), message: error.to_string() }
                })?,
            };
            disks.push(self.virtio(device, saved)?);
        }
        let mut cards = Vec::new();
        for (index, ((config, backend), saved)) in parts.cards.into_iter().zip(card_states).enumerate() {
            let poll = backend.poll_fd().try_clone_to_owned()?;
            let device = match &saved {
                None => Net::new(config, backend),
                Some(saved) => Net::restore(saved.device.clone(), backend).map_err(|error| PlatformError::Restore {
                    what: format!("network card {index}"),
                    message: error.to_string(),
                })?,
            };
            cards.push(Card {
                device: self.virtio(device, saved)?,
                poll,
                connected: AtomicBool::new(true),
                transmit_waits: AtomicBool::new(false),
            });
        }
        let rng = match &rng_state {
            None => Rng::new(parts.entropy),
            Some(saved) => Rng::restore(saved.device.clone(), parts.entropy),
        };
        let rng = self.virtio(rng, rng_state)?;
        if restored {
            // Constructors set the pins of what they restore; the saved levels are the truth.
            self.pins.restore(pins);
        }
        Ok(Platform {
            frame_buffer: Mutex::new(vec![0; FRAME_LEN_MAX].into()),
            host_anchor: Instant::now(),
            clock_anchor_ns: self.clock.now_ns(),
            ram: self.ram,
            pins: self.pins,
            events: self.events,
            clock: self.clock,
            ports: self.ports,
            mmio: self.mmio,
            serial,
            rtc,
            power,
            reset_control,
            disks,
            cards,
            rng,
            virtio: self.virtio,
            queueing: Queueing::default(),
            taken: TakenSignal::default(),
            wake: vmm_sys_util::eventfd::EventFd::new(
                vmm_sys_util::eventfd::EFD_CLOEXEC | vmm_sys_util::eventfd::EFD_NONBLOCK,
            )?,
        })
    }
}

fn check_count(what: &'static str, saved: usize, found: usize) -> Result<(), PlatformError> {
    if saved == found { Ok(()) } else { Err(PlatformError::Count { what, saved, found }) }
}
