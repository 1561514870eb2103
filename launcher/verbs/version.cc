#include "launcher/verbs/version.h"

#include <memory>

#include "launcher/build_info.h"

namespace moesaic {

void RegisterVersion(CLI::App& program, VerbContext& context) {
  CLI::App* verb = program.add_subcommand("version", "Print the version");
  verb->footer("Examples:\n  moesaic version\n  moesaic version --build");
  auto build = std::make_shared<bool>(false);
  verb->add_flag("--build", *build, "Also print commit, compiler and build type");
  verb->callback([build, &context] {
    const BuildInfo& info = ThisBuild();
    context.out << "moesaic " << info.version << "\n";
    if (!*build) return;
    context.out << "commit   " << info.commit << "\ncompiler " << info.compiler << "\nbuild    "
                << info.build_type << "\n";
  });
}

}  // namespace moesaic
