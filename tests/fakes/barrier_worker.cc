// A worker that knows no coordinator, for the tests of agents on several hosts: its ranks meet in
// barriers until the file $HOME/../stop appears.
#include <mpi.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (const char* folder = std::getenv("MOESAIC_RUN_FOLDER")) {
    setenv("OMPI_MCA_btl_vader_backing_directory", folder, 1);
  }
  MPI_Init(&argc, &argv);
  int rank = 0;
  int ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  char host[64] = {};
  gethostname(host, sizeof(host) - 1);
  std::fprintf(stderr, "rank %d of %d on %s, %s\n", rank, ranks, host,
               std::getenv("MOESAIC_TOKEN") != nullptr ? "with a token" : "without a token");
  const std::string stop = std::string(std::getenv("HOME")) + "/../stop";
  const std::string started = std::string(std::getenv("HOME")) + "/../started";
  for (int go_on = 1; go_on != 0;) {
    go_on = rank == 0 && access(stop.c_str(), F_OK) == 0 ? 0 : 1;
    MPI_Bcast(&go_on, 1, MPI_INT, 0, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0 && access(started.c_str(), F_OK) != 0) {
      if (std::FILE* file = std::fopen(started.c_str(), "w")) std::fclose(file);
    }
    usleep(5000);
  }
  MPI_Finalize();
  return 0;
}
