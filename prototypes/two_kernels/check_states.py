import os, sys, time
os.environ["TRITON_INTERPRET"]="1"
import torch
from fla_mesa import interpreter
from fla_mesa.ops import triton
from fla_mesa.ops.triton import launch as L
from fla_mesa.testing.cases import *
first = {}; QUICK = len(sys.argv) > 2
orig = L.launch
def spy(kernel, call, B, rows, **a):
    orig(kernel, call, B, rows, **a)
    if "FIRST" in a and "d" in a and kernel is not L.solve_kernel:
        res, it = a["residual"], a["iterations"]
        first.setdefault(a["FIRST"], []).append((f"{res.max():.1e}", int((~(res<=a["tolerance"])).sum()), it.max().item(), round(it.float().mean().item(),1)))
L.launch = spy
def exact(x):
    q,k,v,beta,g=(x[n][0,:,0].double() for n in ("q","k","v","beta","g"))
    H,G,lamb=x["h_kk_init"][0,0].double(),x["h_kv_init"][0,0].double(),x["lamb"][0].double()
    X,O,b2=[],[],[]
    for t in range(len(q)):
        H=g[t].exp()*H+beta[t]*k[t][:,None]*k[t]; G=g[t].exp()*G+beta[t]*k[t][:,None]*v[t]
        w=torch.linalg.solve(H+lamb.diag(),q[t]); X.append(w); O.append(G.T@w)
    return torch.stack(X),torch.stack(O)
def go(name, case, scale=0, dtype=torch.bfloat16, tol=1e-3, edit=None):
    x={n:v.detach() for n,v in draw(case,dtype).items()}
    if scale:
        x["k"]=x["k"][:,:1].expand_as(x["k"]).contiguous(); x["lamb"]=torch.full_like(x["lamb"],.25)
        kk=x["k"][:,0,:,:,None].float(); x["h_kk_init"]=scale*kk*kk.mT
    if edit: edit(x)
    first.clear()
    with interpreter.rounded_dots():
        out=triton.chunk_forward(*x.values(),cu_seqlens=None,cu_seqlens_cpu=None,max_steps=100,tolerance=tol)
    xs=out.x[...,:case.K].float()*torch.exp2(out.x[...,case.K:case.K+1].float()) if out.x.dtype==torch.float16 else out.x
    X,O=exact(x); lamb=x["lamb"][0].double()
    ex=((xs[0,:,0].double()-X)*lamb.sqrt()).norm(dim=-1)
    b=(x["q"][0,:,0].double()/lamb.sqrt()).norm(dim=-1)
    res=out.residual[0,:,0].double()
    bound=res*b+ (X*lamb.sqrt()).norm(dim=-1)*2**-11
    print(name, case.K, "first",first.get(True),"again",first.get(False),"err x",f"{(ex.norm()/(X*lamb.sqrt()).norm()):.1e}","err o",f"{((out.o[0,:,0].double()-O).norm()/O.norm()):.1e}","res max",f"{res.max():.1e}","err/bound max",f"{(ex/bound).max():.2f}",flush=True)
if __name__=="__main__":
  for K in map(int,sys.argv[1].split(",")):
    go("keys",Case(T=64,H=1,K=K,V=16,mean=.35,spread=1.))
    go("keys g.99",Case(T=128,H=1,K=K,V=16,mean=.35,spread=1.,gates=(.99,1.)))
    go("mean 1 g 1",Case(T=64,H=1,K=K,V=16,mean=1.,spread=1.,gates=(1.,1.)))
    go("mean 3",Case(T=128,H=1,K=K,V=16,mean=3.,gates=(.9,1.)))
    for s in ([2000,20000] if QUICK else [30,100,300,2000,20000]): go(f"state {s}",Case(T=64,H=1,K=K,V=16,gates=(.99,.99)),s)
    def keys(x): x["k"][:,20:40]*=300
    go("keys x300",Case(T=70,H=1,K=K,V=16,gates=(1.,1.)),0,edit=keys)
    def bt(x): x["beta"][:,20:40]=1e5
    go("beta 1e5",Case(T=70,H=1,K=K,V=16,gates=(1.,1.)),0,edit=bt)
