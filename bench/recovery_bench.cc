// What a snapshot, a save and a restore from each tier reach of what the machine gives: copying
// memory, writing and reading files. All ratios come from one run.
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/descriptor.h"
#include "launcher/agent/peer_service.h"
#include "launcher/agent/snapshot_memory.h"
#include "scheduler/certs/authority.h"
#include "scheduler/client/snapshot_peer.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/shard_files.h"
#include "trainer/checkpoint/restore.h"
#include "trainer/checkpoint/snapshot.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

struct Flags {
  uint64_t mebibytes = 512;
  uint64_t object_mebibytes = 4;
  int threads = 2;
  int repeats = 5;
  std::string shared_memory = "/dev/shm";
  std::string disk = ".";
};

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << status << "\n";
  std::exit(1);
}

// The best of some runs: what the code can do, not what the neighbours leave it.
double BestSeconds(int repeats, const std::function<void()>& run) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const absl::Time began = absl::Now();
    run();
    best = std::min(best, absl::ToDoubleSeconds(absl::Now() - began));
  }
  return best;
}

// One host's certificate.
TlsIdentity NewIdentity() {
  const Validity validity{absl::Now() - absl::Hours(1), absl::Now() + absl::Hours(1)};
  const auto authority = Authority::Create(validity);
  Require(authority.status());
  const auto pair = authority->Issue(ROLE_AGENT, "", validity);
  Require(pair.status());
  return {authority->pair().certificate, pair->certificate, pair->key};
}

class RecoveryBench {
 public:
  explicit RecoveryBench(const Flags& flags)
      : flags_(flags),
        arenas_(flags.shared_memory + "/moesaic-bench-" + std::to_string(getpid())),
        disk_(flags.disk + "/moesaic-bench-" + std::to_string(getpid())),
        memory_({.folder = arenas_}) {
    std::filesystem::create_directories(arenas_ + "/bench");
    std::filesystem::create_directories(disk_);
    worker_.set_job("bench");
    worker_.set_generation(1);
    const size_t floats = flags.object_mebibytes * (1 << 18);
    for (uint64_t i = 0; i < flags.mebibytes / flags.object_mebibytes; ++i) {
      values_.emplace_back(floats, static_cast<float>(i) + 0.5f);
      restored_.emplace_back(floats);
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      SnapshotObject object;
      object.name = fmt::format("w{}", i);
      object.shape = {floats};
      object.box = WholeBox(object.shape);
      object.source = values_[i];
      object.layer = 0;
      object.expert = static_cast<int>(i);
      objects_.push_back(object);
    }
  }
  ~RecoveryBench() {
    std::filesystem::remove_all(arenas_);
    std::filesystem::remove_all(disk_);
  }

  void Run() {
    std::cout << fmt::format("{} MiB in objects of {} MiB, {} threads, best of {}\n",
                             flags_.mebibytes, flags_.object_mebibytes, flags_.threads,
                             flags_.repeats);
    const double memcpy_floor = MemcpySeconds();
    Say("floor: memcpy to shared memory in use", memcpy_floor, 0, "");
    const double fresh = SnapshotSeconds(/*fresh=*/true);
    Say("snapshot into a new buffer", fresh, memcpy_floor, "memcpy");
    Say("snapshot into a buffer in use", SnapshotSeconds(/*fresh=*/false), memcpy_floor, "memcpy");
    const double write_floor = WriteFloor();
    Say("floor: write and fsync of one file", write_floor, 0, "");
    Say("save: shards of the snapshot to disk", SaveSeconds(), write_floor, "write");
    const double read_floor = ReadFloor();
    Say("floor: read of a file in the page cache", read_floor, 0, "");
    Say("restore from disk (page cache)", DiskSeconds(), read_floor, "read");
    Say("restore from own memory", OwnSeconds(), memcpy_floor, "memcpy");
    Say("floor: TCP over loopback, one connection", TcpSeconds(), memcpy_floor, "memcpy");
    for (const bool secure : {false, true}) {
      const auto tls = secure ? std::optional(NewIdentity()) : std::nullopt;
      const std::string how = secure ? ", TLS" : "";
      Say("restore from a peer's memory" + how, PeerSeconds(tls), memcpy_floor, "memcpy");
      Say("first copy of a peer's snapshot" + how, ReplicateSeconds(tls, false), memcpy_floor,
          "memcpy");
      Say("next copies of a peer's snapshot" + how, ReplicateSeconds(tls, true), memcpy_floor,
          "memcpy");
    }
  }

 private:
  void Say(const std::string& what, double seconds, double floor, const char* of) const {
    const double rate = static_cast<double>(flags_.mebibytes) / 1024 / seconds;
    std::cout << fmt::format("{:44} {:8.1f} ms {:7.2f} GiB/s", what, seconds * 1e3, rate);
    if (floor > 0) std::cout << fmt::format("   {:.2f} of {}", floor / seconds, of);
    std::cout << std::endl;
  }

  uint64_t bytes() const { return flags_.mebibytes << 20; }
  std::string arena() const { return arenas_ + "/bench/g1-r0"; }

  double MemcpySeconds() {
    const std::string path = arenas_ + "/floor";
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || posix_fallocate(fd, 0, static_cast<off_t>(bytes())) != 0) {
      Require(absl::ResourceExhaustedError(path));
    }
    auto* to = static_cast<char*>(
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    if (to == MAP_FAILED) Require(absl::ResourceExhaustedError("mmap"));
    const double seconds = BestSeconds(flags_.repeats, [&] {
      Require(RunTasks(static_cast<int>(values_.size()), flags_.threads, [&](int i) {
        const auto& from = values_[static_cast<size_t>(i)];
        std::memcpy(to + static_cast<size_t>(i) * from.size() * 4, from.data(), from.size() * 4);
        return absl::OkStatus();
      }));
    });
    munmap(to, bytes());
    close(fd);
    std::filesystem::remove(path);
    return seconds;
  }

  // A new buffer each time, or one that has been used and is free again.
  double SnapshotSeconds(bool fresh) {
    auto taker = std::make_unique<SnapshotTaker>(worker_, 1, arena());
    TrainingState state;
    state.set_step(1);
    Control all_free;
    all_free.set_aborted_snapshot_step(1);
    return BestSeconds(flags_.repeats + !fresh, [&] {
      if (fresh) {
        taker = std::make_unique<SnapshotTaker>(worker_, 1, arena());
        std::filesystem::remove(arena() + ".0");
      }
      taker->Settle(all_free);
      Require(taker->Take(state, objects_, flags_.threads).status());
    });
  }

  double WriteFloor() const {
    const std::string path = disk_ + "/floor";
    return BestSeconds(flags_.repeats, [&] {
      const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
      for (const auto& part : values_) {
        if (write(fd, part.data(), part.size() * 4) != static_cast<ssize_t>(part.size() * 4)) {
          Require(absl::ResourceExhaustedError(path));
        }
      }
      fsync(fd);
      close(fd);
    });
  }

  double SaveSeconds() {
    const auto reader = SnapshotReader::Open(arena() + ".0");
    Require(reader.status());
    int run = 0;
    return BestSeconds(flags_.repeats, [&] {
      const std::string staging = fmt::format("{}/step-{}", disk_, run++);
      std::filesystem::create_directory(staging);
      const auto folder = FileSystem::System().OpenFolder(staging);
      Require(folder.status());
      const auto persisted = PersistShards(**reader, 1, folder->get());
      Require(persisted.status());
      manifest_.mutable_files()->CopyFrom(persisted->files());
      manifest_.mutable_objects()->CopyFrom(persisted->objects());
      step_ = staging;
      if (run > 1) std::filesystem::remove_all(fmt::format("{}/step-{}", disk_, run - 2));
    });
  }

  double ReadFloor() {
    return BestSeconds(flags_.repeats, [&] {
      const int fd = open((disk_ + "/floor").c_str(), O_RDONLY | O_CLOEXEC);
      Require(RunTasks(static_cast<int>(restored_.size()), flags_.threads, [&](int i) {
        auto& part = restored_[static_cast<size_t>(i)];
        const auto size = static_cast<ssize_t>(part.size() * 4);
        return pread(fd, part.data(), part.size() * 4, static_cast<off_t>(i) * size) == size
                   ? absl::OkStatus()
                   : absl::UnavailableError("read");
      }));
      close(fd);
    });
  }

  double RestoreSeconds(const std::function<std::unique_ptr<ObjectSource>()>& open) {
    std::vector<RestoreTarget> targets;
    for (size_t i = 0; i < objects_.size(); ++i) {
      targets.push_back({MASTER, objects_[i].name, objects_[i].box, restored_[i]});
    }
    const double seconds = BestSeconds(flags_.repeats, [&] {
      const auto source = open();
      const ObjectSource* const only = source.get();
      Require(RestoreObjects({&only, 1}, targets, std::max(flags_.threads, 4)).status());
    });
    if (restored_ != values_) Require(absl::DataLossError("restored values differ"));
    for (auto& part : restored_) std::ranges::fill(part, 0.0f);
    return seconds;
  }

  double DiskSeconds() {
    const auto folder = FileSystem::System().OpenFolder(step_);
    Require(folder.status());
    return RestoreSeconds([&] { return StepFolderSource(**folder, manifest_); });
  }

  double OwnSeconds() {
    HeldSnapshot held;
    held.set_job("bench");
    held.set_generation(1);
    held.set_step(1);
    held.set_path(arena() + ".0");
    return RestoreSeconds([&] {
      auto source = OpenArenaSource(held);
      Require(source.status());
      return *std::move(source);
    });
  }

  // What goes through one plain connection within this host.
  double TcpSeconds() const {
    const Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener.get(), name, size) != 0 || listen(listener.get(), 1) != 0 ||
        getsockname(listener.get(), name, &size) != 0) {
      Require(absl::UnavailableError("listen"));
    }
    const Descriptor sender(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(sender.get(), name, size) != 0) Require(absl::UnavailableError("connect"));
    const Descriptor receiver(accept(listener.get(), nullptr, nullptr));
    std::vector<char> buffer(1 << 20);
    return BestSeconds(flags_.repeats, [&] {
      std::thread sending([&] {
        for (const auto& part : values_) {
          const auto bytes = std::as_bytes(std::span(part));
          for (size_t at = 0; at < bytes.size();) {
            const ssize_t sent = send(sender.get(), bytes.data() + at, bytes.size() - at, 0);
            if (sent <= 0) Require(absl::UnavailableError("send"));
            at += static_cast<size_t>(sent);
          }
        }
      });
      for (uint64_t left = bytes(); left > 0;) {
        const ssize_t got = recv(receiver.get(), buffer.data(), buffer.size(), 0);
        if (got <= 0) Require(absl::UnavailableError("receive"));
        left -= static_cast<uint64_t>(got);
      }
      sending.join();
    });
  }

  std::shared_ptr<SnapshotPeer> Serve(const std::optional<TlsIdentity>& tls) {
    memory_.Admit("bench", 1, "t");
    auto service = PeerService::Start({.tls = tls}, nullptr, &memory_);
    Require(service.status());
    service_ = *std::move(service);
    return ConnectToSnapshotPeer(service_->address(), tls);
  }

  double PeerSeconds(const std::optional<TlsIdentity>& tls) {
    const std::shared_ptr<SnapshotPeer> peer = Serve(tls);
    SnapshotRef ref;
    ref.set_job("bench");
    ref.set_generation(1);
    ref.set_step(1);
    ref.set_asking_generation(1);
    ref.set_token("t");
    return RestoreSeconds([&] {
      auto source = OpenPeerSource(peer, ref, "peer");
      Require(source.status());
      return *std::move(source);
    });
  }

  // `again`: into the memory of an earlier copy.
  double ReplicateSeconds(const std::optional<TlsIdentity>& tls, bool again) {
    const std::shared_ptr<SnapshotPeer> peer = Serve(tls);
    const SnapshotMemory copies({.folder = disk_on_memory()});
    ReplicateSnapshot request;
    request.set_job("bench");
    request.set_generation(1);
    request.set_step(1);
    request.set_from(service_->address());
    request.set_token("t");
    request.add_ranks(0);
    const std::string folder = disk_on_memory() + "/bench/copies/";
    return BestSeconds(flags_.repeats, [&] {
      if (!again) {
        std::filesystem::remove_all(folder);
      } else if (std::filesystem::exists(folder + "g1-r0-s1")) {
        std::filesystem::rename(folder + "g1-r0-s1", folder + "g1-r0.free");
      }
      Require(copies.Replicate(request, peer).status());
    });
  }
  std::string disk_on_memory() const { return arenas_ + "/other"; }

  const Flags flags_;
  const std::string arenas_, disk_;
  std::string step_;
  Manifest manifest_;
  WorkerIdentity worker_;
  std::vector<std::vector<float>> values_, restored_;
  std::vector<SnapshotObject> objects_;
  SnapshotMemory memory_;
  std::unique_ptr<PeerService> service_;
};

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App program("Snapshots, saves and restores beside what memory and disk give.");
  program.add_option("--mebibytes", flags.mebibytes, "Of training state (512)");
  program.add_option("--object-mebibytes", flags.object_mebibytes, "Of one object (4)");
  program.add_option("--threads", flags.threads, "That copy and read (2)");
  program.add_option("--repeats", flags.repeats, "The best of so many counts (5)");
  program.add_option("--shared-memory", flags.shared_memory, "A folder in tmpfs (/dev/shm)");
  program.add_option("--disk", flags.disk, "A folder on the disk that counts (.)");
  CLI11_PARSE(program, argc, argv);
  RecoveryBench(flags).Run();
  return 0;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) { return moesaic::Main(argc, argv); }
