# MEMBANK_SANITIZE: what is compiled, what every program links, and where tests leave what they find. A finding in a process that a test
# kills, or expects to die, fails no test by itself: every report goes to a file, and the test sanitizer_findings, which runs after all
# others, prints the files and fails when there is one.
add_compile_options(-fsanitize=${MEMBANK_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)
add_link_options(-fsanitize=${MEMBANK_SANITIZE})
if(MEMBANK_SANITIZE MATCHES "undefined" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-static-libubsan)  # GCC's shared one knows no log_path
endif()

# Not detect_stack_use_after_return: its frames are not aligned for GCC 12's 64-byte vectors (bug 110027), and the kernels crash.
set(MEMBANK_FINDINGS ${CMAKE_BINARY_DIR}/findings)
set(log "log_path=${MEMBANK_FINDINGS}/report")
set(MEMBANK_SANITIZER_ENVIRONMENT
  "ASAN_OPTIONS=${log}:detect_stack_use_after_return=0:strict_string_checks=1"
  "LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/sanitizers/lsan.supp:print_suppressions=0"
  "UBSAN_OPTIONS=${log}:print_stacktrace=1"
  "TSAN_OPTIONS=${log}:suppressions=${CMAKE_SOURCE_DIR}/tests/sanitizers/tsan.supp:history_size=4:ignore_noninstrumented_modules=1:print_suppressions=0")

if(MEMBANK_SANITIZE MATCHES "thread")
  add_library(membank_tsan_order OBJECT ${CMAKE_SOURCE_DIR}/tests/sanitizers/tsan_order.cc)
  set(MEMBANK_SANITIZER_OBJECTS $<TARGET_OBJECTS:membank_tsan_order>)  # of every program
endif()

add_test(NAME sanitizer_findings_begin COMMAND ${CMAKE_COMMAND} -E rm -rf ${MEMBANK_FINDINGS})
set_tests_properties(sanitizer_findings_begin PROPERTIES FIXTURES_SETUP sanitizer_findings)
add_test(NAME sanitizer_findings COMMAND /usr/bin/python3 ${CMAKE_SOURCE_DIR}/tests/sanitizers/findings.py ${MEMBANK_FINDINGS})
set_tests_properties(sanitizer_findings PROPERTIES FIXTURES_CLEANUP sanitizer_findings)
