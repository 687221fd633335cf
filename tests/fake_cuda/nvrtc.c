// A libnvrtc for tests: what it "compiles" is a mark and the text itself, which the fake libcuda loads.
//
// Environment: FAKE_NVRTC_VERSION (1209 is 12.9), FAKE_NVRTC_RESULT (what compiling returns),
// FAKE_NVRTC_LOG (a file to which one line is added per compilation).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef struct { char *text; char *name; char *lowered; } Program;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

API int nvrtcVersion(int *major, int *minor) {
    int v = number("FAKE_NVRTC_VERSION", 1209);
    *major = v / 100;
    *minor = v % 100;
    return 0;
}
static const int archs[] = {75, 80, 86, 89, 90, 100, 120};
API int nvrtcGetNumSupportedArchs(int *n) { *n = 7; return 0; }
API int nvrtcGetSupportedArchs(int *out) { memcpy(out, archs, sizeof archs); return 0; }
API int nvrtcCreateProgram(Program **p, const char *text, const char *name, int n, const char *const *h, const char *const *hn) {
    (void)n; (void)h; (void)hn;
    *p = malloc(sizeof **p);
    (*p)->text = malloc(strlen(text) + 8);
    sprintf((*p)->text, "FAKE%s", text);
    (*p)->name = strdup(name);
    (*p)->lowered = 0;
    return 0;
}
API int nvrtcDestroyProgram(Program **p) {
    free((*p)->text);
    free((*p)->name);
    free((*p)->lowered);
    free(*p);
    *p = 0;
    return 0;
}
API int nvrtcAddNameExpression(Program *p, const char *name) { (void)p; (void)name; return 0; }
// A mark and the expression.
API int nvrtcGetLoweredName(Program *p, const char *name, const char **lowered) {
    p->lowered = realloc(p->lowered, strlen(name) + 3);
    sprintf(p->lowered, "_Z%s", name);
    *lowered = p->lowered;
    return 0;
}
#ifndef TRUNCATED
API int nvrtcCompileProgram(Program *p, int n, const char *const *options) {
    (void)n; (void)options;
    const char *path = getenv("FAKE_NVRTC_LOG");
    FILE *f = path ? fopen(path, "a") : 0;
    if (f) { fprintf(f, "%s\n", p->name); fclose(f); }
    return number("FAKE_NVRTC_RESULT", 0);
}
#endif
API int nvrtcGetCUBINSize(Program *p, size_t *n) { *n = strlen(p->text) + 1; return 0; }
API int nvrtcGetCUBIN(Program *p, char *out) { strcpy(out, p->text); return 0; }
API int nvrtcGetProgramLogSize(Program *p, size_t *n) { (void)p; *n = 1; return 0; }
API int nvrtcGetProgramLog(Program *p, char *out) { (void)p; *out = 0; return 0; }
API const char *nvrtcGetErrorString(int r) {
    return r == 7 ? "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE" : r ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS";
}
